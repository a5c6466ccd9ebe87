"""The rows of the brief experience in their file: known by its mark, never mixed with another's."""

import json
from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.experience.sampling_run import sample_any
from cherry_vllm.store.marks import read_mark
from tests.made_up import SHIPPED, write_rows


def test_the_mark_of_a_sample_names_its_rows_and_a_second_run_finds_it(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    target = sample_any(tmp_path, rows, count=5, seed=1)
    mark = read_mark(target)
    assert mark is not None
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    records = json.loads(target.read_text(encoding="utf-8"))
    assert records == [json.loads(lines[row]) for row in mark["rows"]]
    assert mark["counts"] == {"num_sampled": 5, "num_candidates": 26}
    before = target.stat()
    assert sample_any(tmp_path, rows, count=5, seed=1) == target
    assert target.stat() == before


def test_a_sample_that_was_edited_is_neither_used_nor_replaced(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    target = sample_any(tmp_path, rows, count=5, seed=1)
    target.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="choose another output or move it"):
        sample_any(tmp_path, rows, count=5, seed=1)
    assert target.read_text(encoding="utf-8") == "[]"
