"""What the instruction gains for each token, against loops over the tokens."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cherry_vllm.errors import UserError
from cherry_vllm.schema import GAINS, LOGPROBS, SCORES, SUMS
from cherry_vllm.scoring import gains
from cherry_vllm.scoring.gains import find_threshold
from cherry_vllm.scoring.ifd import aggregate_logprobs, sum_logprobs
from cherry_vllm.scoring.run import aggregate, with_gains
from cherry_vllm.store.files import read_json
from cherry_vllm.store.scores import changing_scores, open_scores, write_scores
from cherry_vllm.store.shards import Shards
from tests.made_up import made_up_logprobs, score, write_logprobs, write_rows

Turns = list[list[float]]
# The shipped rows under the demo's checkpoint: engine=hf engine.dtype=float32 max_length=96
REAL = Path(__file__).parents[1] / "data" / "golden_logprobs.parquet"


def frame_of(*pairs: tuple[Turns, Turns] | None) -> pl.DataFrame:
    """A frame of LOGPROBS of rows given as (conditioned, direct) by turn; None: not scored."""
    columns = {
        "row": range(len(pairs)),
        "conditioned_logprobs": [pair and pair[0] for pair in pairs],
        "direct_logprobs": [pair and pair[1] for pair in pairs],
        "truncated": [pair and False for pair in pairs],
        "drop_reason": [None if pair else "refusal" for pair in pairs],
    }
    return pl.DataFrame(columns, schema=LOGPROBS)


def loop(frame: pl.DataFrame, percent: float) -> list[tuple[Any, ...]]:
    """GAINS of each row, token by token."""
    gains: list[list[float] | None] = []
    for conditioned, direct in frame.select("conditioned_logprobs", "direct_logprobs").iter_rows():
        row: list[float] | None = None
        if conditioned is not None and [*map(len, conditioned)] == [*map(len, direct)]:
            row = []
            for before, alone in zip(conditioned, direct, strict=True):
                for c, d in zip(before, alone, strict=True):
                    row.append(float(np.float32(c) - np.float32(d)))
            row = row if all(map(math.isfinite, row)) else None
        gains.append(row)
    sizes = [abs(gain) for row in gains for gain in row or ()]
    threshold = np.percentile(sizes, 100 - percent) if sizes else math.inf
    found: list[tuple[Any, ...]] = []
    for row in gains:
        if row is None:
            found.append((None, None, None))
            continue
        kept = [gain for gain in row if abs(gain) > threshold]
        selective = math.exp(-sum(kept) / len(kept)) if kept else None
        found.append((sum(gain > 0 for gain in row) / len(row), sum(row), selective))
    return found


def assert_same(scores: pl.DataFrame, expected: list[tuple[Any, ...]]) -> None:
    for found, wanted in zip(scores.select(GAINS).iter_rows(), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            assert one is None or one == pytest.approx(other, rel=1e-5, abs=1e-6)


def scores_of(frame: pl.DataFrame, percent: float = 75) -> pl.DataFrame:
    return aggregate_logprobs(frame.lazy(), find_threshold(frame.lazy(), percent)).collect()


@pytest.mark.parametrize("percent", [1, 25, 50, 75, 99.9, 100])
def test_gains_are_those_of_a_loop_over_the_tokens(percent: float) -> None:
    frame = made_up_logprobs(300)
    expected = loop(frame, percent)
    assert_same(scores_of(frame, percent), expected)
    selective = [line[2] for line in expected if line[2] is not None]
    assert len(selective) > 20
    assert len({round(value, 9) for value in selective}) > 20


@pytest.mark.parametrize("percent", [10, 75, 100])
def test_real_log_probs_give_what_a_loop_over_their_tokens_gives(percent: float) -> None:
    real = pl.read_parquet(REAL)
    scores = scores_of(real, percent)
    assert_same(scores, loop(real, percent))
    assert scores["share_helped"].count() == 24
    texts = real.select("conditioned_logprobs", "direct_logprobs").iter_rows()
    for (conditioned, direct), row in zip(texts, scores.iter_rows(named=True), strict=True):
        if conditioned is None:
            assert row["drop_reason"] == "prompt_too_long"
            assert row["ifd_ppl"] is row["ifd"] is None
            continue
        ((given,), (alone,)) = (conditioned, direct)
        with_it, without = (-sum(found) / len(found) for found in (given, alone))
        assert row["ifd"] == pytest.approx(with_it / without, rel=1e-6)
        assert row["ifd_ppl"] == pytest.approx(math.exp(with_it) / math.exp(without), rel=1e-6)


def test_a_small_case_by_hand() -> None:
    frame = frame_of(([[-1.0, -2.0]], [[-3.0, -1.5]]), ([[-1.0], [-4.0]], [[-1.0], [-2.0]]), None)
    # Gains 2, -0.5 and 0, -2; sizes 0, 0.5, 2, 2: the 25th percentile is 0.375.
    assert find_threshold(frame.lazy(), 75) == 0.375
    found = scores_of(frame).select(GAINS).rows()
    assert found[0] == (0.5, 1.5, pytest.approx(math.exp(-0.75)))
    assert found[1] == (0.0, -2.0, pytest.approx(math.exp(2)))
    assert found[2] == (None, None, None)


def test_a_size_that_equals_the_threshold_does_not_exceed_it() -> None:
    frame = frame_of(([[-1.0] * 3], [[-2.0] * 3]))
    assert find_threshold(frame.lazy(), 75) == 1
    assert scores_of(frame).select(GAINS).row(0) == (1, 3, None)


def test_rows_whose_passes_differ_in_tokens_have_no_gains_and_move_no_threshold() -> None:
    plain = (([[-1.0, -2.0]], [[-3.0, -1.5]]),)
    odd = (
        ([[-1.0, -2.0], [-9.0]], [[-3.0], [-1.5, -9.0]]),  # as many tokens, but in other turns
        ([[-9.0]], [[-3.0, -1.5]]),
        ([[-math.inf]], [[-1.0]]),
        ([[math.nan, -1.0]], [[-1.0, -1.0]]),
        None,
    )
    frame = frame_of(*plain, *odd)
    assert find_threshold(frame.lazy(), 75) == find_threshold(frame_of(*plain).lazy(), 75)
    scores = scores_of(frame)
    assert scores.select(pl.col("share_helped", "s_ifd").count()).row(0) == (1, 1)
    assert scores["ifd"].is_not_null().to_list() == [True, True, True, False, False, False]
    assert_same(scores.head(1), loop(frame, 75)[:1])


def test_no_token_gives_no_threshold() -> None:
    assert find_threshold(frame_of(None, None).lazy(), 75) is None
    assert find_threshold(frame_of().lazy(), 75) is None
    assert scores_of(frame_of(None))["s_ifd"].to_list() == [None]


FLOATS = st.floats(-50, 0, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=40),
    st.floats(0.5, 100),
    st.integers(1, 7),
)
def test_the_threshold_is_numpys_percentile(
    pairs: list[tuple[float, float]], percent: float, per_row: int
) -> None:
    groups = [pairs[start : start + per_row] for start in range(0, len(pairs), per_row)]
    frame = frame_of(*(([[c for c, _ in group]], [[d for _, d in group]]) for group in groups))
    sizes = [abs(np.float32(c) - np.float32(d)) for c, d in pairs]
    expected = np.percentile(np.array(sizes, np.float64), 100 - percent)
    assert find_threshold(frame.lazy(), percent) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_more_tokens_are_counted_than_32_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many equal tokens as no test can hold: each counts for 10**9."""
    count = gains._count

    def count_more(bits: pl.LazyFrame) -> pl.DataFrame:
        return count(bits).with_columns(pl.col("len") * 10**9)

    monkeypatch.setattr(gains, "_count", count_more)
    frame = frame_of(([[-1.0] * 6], [[-2.0] * 3 + [-3.0] * 3]))
    assert find_threshold(frame.lazy(), 75) == 1
    assert find_threshold(frame.lazy(), 25) == 2


def test_sums_keep_all_but_s_ifd() -> None:
    frame = made_up_logprobs(60)
    sums = sum_logprobs(frame.lazy()).collect()
    assert sums.schema == pl.Schema(SUMS)
    found, full = aggregate_logprobs(sums.lazy()).collect(), scores_of(frame)
    assert found.drop("s_ifd").equals(full.drop("s_ifd"))
    assert found["s_ifd"].null_count() == 60
    assert full["s_ifd"].count() > 30


# --- runs --------------------------------------------------------------------------------------


def test_another_percent_changes_s_ifd_alone_and_scores_nothing_again(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    logprobs = write_logprobs(tmp_path, rows)
    first = aggregate(tmp_path, rows, logprobs)
    shards = {path: path.stat().st_mtime_ns for path in logprobs.folder.iterdir()}
    assert aggregate(tmp_path, rows, logprobs, s_ifd_percent=75).frame.equals(first.frame)
    second = aggregate(tmp_path, rows, logprobs, s_ifd_percent=50)
    assert second.frame.drop("s_ifd").equals(first.frame.drop("s_ifd"))
    assert not second.frame.equals(first.frame)
    assert read_json(tmp_path / "score.json")["s_ifd"]["percent"] == 50
    assert {path: path.stat().st_mtime_ns for path in logprobs.folder.iterdir()} == shards
    assert (second.fingerprint, second.contents) == (first.fingerprint, first.contents)


def make_older(scores_dir: Path) -> pl.DataFrame:
    """Rewrites the scores as an earlier release left them; returns their frame until then."""
    held = open_scores(scores_dir)
    manifest = {key: held.manifest[key] for key in held.manifest if key != "s_ifd"}
    with changing_scores(scores_dir):
        write_scores(scores_dir, held.frame.drop(GAINS), held.rows_folder, manifest)
    return held.frame


def test_scores_of_an_earlier_release_get_the_columns_without_being_scored_again(
    tmp_path: Path,
) -> None:
    rows = score(tmp_path)
    frame = make_older(tmp_path)
    older = open_scores(tmp_path)
    assert with_gains(older, s_ifd_percent=75).equals(frame)
    logprobs = Shards.open(older.logprobs_folder)
    assert aggregate(tmp_path, rows, logprobs).frame.equals(frame)
    assert open_scores(tmp_path).frame.columns == list(SCORES)


def test_without_their_log_probs_one_line_says_what_to_do(tmp_path: Path) -> None:
    score(tmp_path)
    make_older(tmp_path)
    next(tmp_path.glob("logprobs/*/part-00000.parquet")).unlink()
    with pytest.raises(UserError, match=r"without share_helped, nats_saved, s_ifd; run") as error:
        with_gains(open_scores(tmp_path), s_ifd_percent=75)
    assert "\n" not in str(error.value)


def test_sums_of_an_earlier_release_are_read_beside_new_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cherry_vllm")
    rows = write_rows(tmp_path)
    full = write_logprobs(tmp_path, rows)
    sums = Shards(tmp_path / "logprobs", {**full.settings, "keep_logprobs": False})
    for index in range(rows.num_shards):
        frame = sum_logprobs(full.read(index).lazy()).collect()
        sums.write(index, frame if index % 2 else frame.drop("num_helped_tokens"))
    sums.close(rows.num_shards)
    found = aggregate(tmp_path, rows, sums).frame
    assert found["nats_saved"].null_count() == 0
    assert found["share_helped"].null_count() == 15  # of shards 0, 2 and 4
    assert found["s_ifd"].null_count() == found.height
    lines = [line for line in caplog.messages if "s_ifd" in line]
    assert len(lines) == 1
    assert "score.keep_logprobs=false" in lines[0]
    assert json.loads((tmp_path / "score.json").read_text())["s_ifd"]["threshold"] is None
