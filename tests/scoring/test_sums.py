"""Sums in place of log-probs: the same scores on less disk."""

from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.schema import GAINS
from tests.conftest import Cli
from tests.runs import NUM_ROWS, command, logprob_files

pytestmark = [pytest.mark.engine, pytest.mark.process]


def test_sums_alone_give_the_same_scores_on_less_disk(
    data: Path, tiny: Path, cli: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    done = cli(*command(data, tiny, tmp_path, "score.keep_logprobs=false", "shard_rows=240"))
    assert done.returncode == 0, done.stderr
    sums, scores = logprob_files(tmp_path), pl.read_parquet(tmp_path / "scores.parquet")
    full = pl.read_parquet(undisturbed / "scores.parquet")
    inexact = ("ifd", "ifd_ppl", "conditioned_score", "direct_score", "turn_ifd", *GAINS)
    assert scores.drop(inexact).equals(full.drop(inexact))
    # Shards of another size are other batches.
    assert scores["ifd"].to_list() == pytest.approx(full["ifd"].to_list(), abs=1e-6)
    assert scores["nats_saved"].to_list() == pytest.approx(full["nats_saved"].to_list(), abs=1e-3)
    assert scores["share_helped"].null_count() == full["share_helped"].null_count()
    assert scores["s_ifd"].null_count() == scores.height
    assert set(pl.read_parquet(*tmp_path.glob("logprobs/*/*.parquet")).columns) == {
        "row",
        "num_answer_tokens",
        "conditioned_sum",
        "num_direct_tokens",
        "direct_sum",
        "num_helped_tokens",
        "truncated",
        "drop_reason",
    }
    assert sum(map(len, sums.values())) < 40 * NUM_ROWS
