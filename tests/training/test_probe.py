"""How much of what training taught is kept."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.schema import SCORES
from cherry_vllm.store.files import write_json
from cherry_vllm.training.probe import Probe, gain_kept, measure_gain

PROBE = Probe(
    rows=[0, 2, 3],
    num_tokens=[1, 2, 1],
    row_losses={"base": [4.0, 3.0, 8.0], "model": [2.0, 2.0, 4.0]},
)
ROWS = [10, 11, 12, 13]  # in the scored data, of the rows of the training set


def scores_of(scored: dict[int, float | None]) -> pl.DataFrame:
    lines = [
        {
            "row": row,
            "conditioned_score": score,
            "num_answer_tokens": None if score is None else 1 + (row == 12),
            "drop_reason": "engine_failed" if score is None else None,
        }
        for row, score in scored.items()
    ]
    return pl.DataFrame(lines, schema_overrides=SCORES)


@pytest.mark.parametrize(
    ("losses", "kept"), [((2.0, 1.0, 1.0), 1), ((2.0, 1.0, 1.64), 0.36), ((1.0, 1.0, 1.0), None)]
)
def test_gain_kept(losses: tuple[float, float, float], kept: float | None) -> None:
    assert gain_kept(*losses) == (kept if kept is None else pytest.approx(kept))


def test_a_models_loss_is_the_mean_over_all_answer_tokens() -> None:
    assert PROBE.losses == {"base": (4 + 2 * 3 + 8) / 4, "model": (2 + 2 * 2 + 4) / 4}
    assert Probe([], [], {}).losses == {}


def test_a_probe_reads_back_from_json() -> None:
    again = Probe.from_json(json.loads(json.dumps(PROBE.to_json())))
    assert (again, again.losses) == (PROBE, PROBE.losses)


def test_the_scorers_loss_is_compared_row_by_row() -> None:
    gain = measure_gain(PROBE, ROWS, scores_of({10: 3.0, 11: 9.0, 12: 2.5, 13: 6.0}))
    assert gain is not None
    assert (gain.num_rows, gain.num_probe_rows) == (3, 3)
    assert (gain.base, gain.tuned, gain.scorer) == (4.5, 2.5, 3.5)
    assert gain.kept == 0.5


@pytest.mark.parametrize("lost", [{13: None}, {}])
def test_a_probe_row_without_a_score_is_left_out_for_all_models(
    lost: dict[int, None], tmp_path: Path
) -> None:
    gain = measure_gain(PROBE, ROWS, scores_of({10: 3.0, 12: 2.0, **lost}))
    assert gain is not None
    assert (gain.num_rows, gain.num_probe_rows) == (2, 3)
    assert gain.base == pytest.approx((4 + 2 * 3) / 3)
    assert gain.tuned == pytest.approx(2)
    assert gain.scorer == pytest.approx((3 + 2 * 2) / 3)
    write_json(tmp_path / "gain.json", asdict(gain))  # refuses what JSON does not have


def test_no_probe_row_with_a_score_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert measure_gain(PROBE, ROWS, scores_of({10: None, 11: 1.0})) is None
    assert "the scorer scored none of the 3 probe rows" in caplog.text


def test_a_lost_gain_is_told(caplog: pytest.LogCaptureFixture) -> None:
    measure_gain(PROBE, ROWS, scores_of({10: 4.0, 12: 3.0, 13: 7.9}))
    assert "the scorer keeps 1% of what training taught" in caplog.text


def test_json_never_holds_what_json_does_not_have(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "file.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []
