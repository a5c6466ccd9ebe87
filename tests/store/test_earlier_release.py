"""What an earlier release left in a run folder is told once."""

from pathlib import Path

import pytest

from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.earlier_release import warn_of_earlier_release
from cherry_vllm.store.files import write_json
from cherry_vllm.store.shards import Shards


def test_the_owner_of_an_earlier_releases_run_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_earlier_release(tmp_path)
    for name in ("rows", "logprobs"):
        old = Shards(tmp_path / name, {"schema_version": SCHEMA_VERSION - 1})
        old.begin()
        old.close(0)
    write_json(tmp_path / "rows" / "own" / "complete.json", ["mine"])
    warn_of_earlier_release(tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: holds shards and scores of an earlier cherry-vllm (schema "
        f"{SCHEMA_VERSION - 1}), which this one cannot use; they are made again"
    ]


def test_nothing_is_said_once_this_release_has_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (SCHEMA_VERSION - 1, SCHEMA_VERSION):
        Shards(tmp_path / "rows", {"schema_version": version}).begin()
    warn_of_earlier_release(tmp_path)
    assert caplog.messages == []
