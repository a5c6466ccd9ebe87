"""Log-prob shards to ``scores.parquet``, resumed from whatever a kill may leave."""

from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.scoring.run import aggregate
from tests.made_up import write_logprobs, write_rows


def test_scores_are_made_again_if_the_stage_did_not_end(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    logprobs = write_logprobs(tmp_path, rows)
    scores = aggregate(tmp_path, rows, logprobs).frame
    assert scores["ifd"].to_list() == pytest.approx([0.1 + row / 20 for row in range(26)])
    for name in ("score.json", "scores.parquet"):
        (tmp_path / name).unlink()
        (tmp_path / "score.json").unlink(missing_ok=True)
        again = aggregate(tmp_path, rows, logprobs).frame
        assert again.equals(scores)
        assert (tmp_path / name).is_file()


def test_scores_of_other_settings_are_replaced(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    aggregate(tmp_path, rows, write_logprobs(tmp_path, rows))
    replaced = aggregate(tmp_path, rows, write_logprobs(tmp_path, rows, first=0.2)).frame
    assert replaced["ifd"][0] == pytest.approx(0.2)
    assert pl.read_parquet(tmp_path / "scores.parquet").equals(replaced)
