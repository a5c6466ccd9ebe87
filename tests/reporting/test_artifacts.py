"""What a report finds in a run folder, foreign files among it."""

import logging
from pathlib import Path

import pytest

from cherry_vllm.reporting.artifacts import find_aspects, find_jobs, find_manifests
from cherry_vllm.store.scores import open_scores
from tests import made_up

FOREIGN = ["[1, 2]", "not JSON", '{"model": "gpt-4"}', '{"stages": 3}']


@pytest.mark.parametrize("content", FOREIGN)
def test_another_programs_files_are_left_out_with_a_warning(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("pipeline.json", "judge.json", "aspects.json", "cherry.json.meta.json"):
        path = tmp_path / "their tool" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    made_up.score(tmp_path / "scored")
    with caplog.at_level(logging.WARNING):
        assert find_manifests(tmp_path) == []
        assert find_jobs(tmp_path, "cherry.json.meta.json") == []
        assert find_aspects(tmp_path, open_scores(tmp_path / "scored")) is None
    assert "pipeline.json: not written by cherry-vllm" in caplog.text
