"""What a report finds in a run folder, foreign files among it."""

import logging
from pathlib import Path

import pytest

from cherry_vllm.experience.stored_embeddings import list_embeddings
from cherry_vllm.reporting.artifacts import (
    find_aspects,
    find_check,
    find_jobs,
    find_losses,
    find_manifests,
    find_selection,
)
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import select_records
from cherry_vllm.store.files import read_json, write_json
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
    assert "pipeline.json: damaged, or not written by cherry-vllm" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("models/m/losses.csv", ""),
        ("models/m/losses.csv", "\x00 garbage\n1,2,3"),
        ("models/m/losses.csv", "step,loss,learning_rate\none,two,three"),
        ("judge.json", '{"figures": []}'),
        ("judge.json", '{"figures": null}'),
        ("judge.json", '{"figures": [{"a": 1}]}'),
        ("aspects.json", '{"settings": null, "sides": {}}'),
        ("aspects.json", '{"settings": {"scores": "a"}, "sides": {"top": {}, "least": {}}}'),
        ("pipeline.json", '{"config": null, "stages": []}'),
        ("pipeline.json", '{"config": {"run_dir": "a"}, "stages": [{"artifact": "b"}]}'),
        ("embeddings/0123/complete.json", "{}"),
        ("cherry.json.meta.json", '{"scores": "a", "num_selected": 1}'),
        ("check.json", '{"pace": {}}'),
    ],
)
def test_a_damaged_file_is_left_out_with_one_line_that_names_it(
    name: str, content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made_up.score(tmp_path)
    scores, path = open_scores(tmp_path), tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    assert find_jobs(tmp_path, "cherry.json.meta.json") == []
    assert find_aspects(tmp_path, scores) is None
    assert list_embeddings(tmp_path, scores) == []
    assert find_losses(tmp_path).is_empty()
    assert find_check(tmp_path) is None
    warnings = {message.partition(": ")[0] for message in caplog.messages}
    assert warnings == {str(path)}
    assert not any("\n" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "change", [{"num_selected": 3}, {"rows": "0-x"}, {"pool": "all"}, {"rule": None}]
)
def test_a_mark_that_describes_no_possible_selection_is_left_out(
    change: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made_up.score(tmp_path)
    select_records(tmp_path, tmp_path / "cherry.json", Choice(count=2))
    mark, scores = tmp_path / "cherry.json.meta.json", open_scores(tmp_path)
    assert find_selection(mark, scores)
    write_json(mark, {**read_json(mark), **change})
    assert find_selection(mark, scores) is None
    assert f"{mark}: damaged" in caplog.text
