"""Measures whether a copy of a tuned model, or the scorer, keeps what training taught."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import REFERENCE

log = logging.getLogger(__name__)

KEPT_ENOUGH = 0.9  # of the loss reduction by training
BASE, TUNED = "base", "model"  # the names of the two models that a gain compares


@dataclass(frozen=True)
class Probe:
    """The answer loss of several models on some rows of a training set, in nats per token."""

    rows: Sequence[int]  # positions in the training set
    num_tokens: Sequence[int]  # of the answer, EOS left out as in scoring
    row_losses: Mapping[str, Sequence[float]]  # by model, row by row

    @property
    def losses(self) -> dict[str, float]:
        """Each model's mean over all answer tokens; empty if no row was probed."""
        if not self.rows:
            return {}
        return {name: _mean(found, self.num_tokens) for name, found in self.row_losses.items()}

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads, and the mean losses for people to read."""
        return {
            "rows": list(self.rows),
            "num_tokens": list(self.num_tokens),
            "losses": self.losses,
            "row_losses": {name: list(found) for name, found in self.row_losses.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Probe":
        return cls(value["rows"], value["num_tokens"], value["row_losses"])


@dataclass(frozen=True)
class Gain:
    """How much training lowered the loss, and how much of that the scorer keeps."""

    num_rows: int  # in both the probe and the scores
    num_probe_rows: int
    base: float
    tuned: float
    scorer: float
    kept: float | None  # a share of base - tuned; None if training did not lower the loss


def probe_losses(
    spans: Mapping[int, Sequence[Span]],
    models: Mapping[str, Checkpoint],
    *,
    num_rows: int,
    trust_remote_code: bool,
) -> Probe:
    """Each model's answer loss on up to ``num_rows`` rows spread over the training set.

    ``spans`` are those of each row, by its position in the training set. Products are in fp32, so
    that losses differ only because of the weights. Rows whose loss is not finite under all models
    are left out, and counted in a warning.
    """
    usable = list(spans)
    rows = [usable[i] for i in sorted({i * len(usable) // num_rows for i in range(num_rows)})]
    if not rows:
        return Probe([], [], {})
    chosen = [spans[row] for row in rows]
    measure = partial(answer_losses, rows=chosen, trust_remote_code=trust_remote_code)
    table = np.array([measure(model) for model in models.values()])
    finite = np.isfinite(table).all(axis=0)
    if not finite.all():
        log.warning(
            "%d of %d probe rows have a loss that is not finite and are left out",
            np.count_nonzero(~finite),
            len(rows),
        )
    num_tokens = [sum(span.num_answer_tokens for span in of_row) for of_row in chosen]
    return Probe(
        rows=[row for row, kept in zip(rows, finite, strict=True) if kept],
        num_tokens=[count for count, kept in zip(num_tokens, finite, strict=True) if kept],
        row_losses=dict(zip(models, table[:, finite].tolist(), strict=True)),
    )


def answer_losses(
    model: Checkpoint,
    rows: Sequence[Sequence[Span]],
    *,
    trust_remote_code: bool,
    on_scored: Callable[[int], None] = lambda _count: None,
) -> list[float]:
    """A model's mean loss over the answer tokens of each row's spans, in nats, in fp32.

    ``on_scored`` is called with the number of spans that have just finished.
    """
    spans = [span for of_row in rows for span in of_row]
    engine = build_engine(
        REFERENCE,
        model,
        max_length=max(len(span.token_ids) for span in spans),
        trust_remote_code=trust_remote_code,
    )
    found = iter(engine.logprobs(spans, on_scored))
    by_row = [np.concatenate([next(found) for _ in of_row]) for of_row in rows]
    return [-float(logprobs.mean(dtype=np.float64)) for logprobs in by_row]


def measure_gain(probe: Probe, rows: Sequence[int], scores: pl.DataFrame) -> Gain | None:
    """Compares base model, tuned model and scorer on the probe rows that have a score.

    ``rows`` are the row numbers of the training set's rows in ``scores`` (:data:`schema.SCORES`).
    Warns if the scorer keeps too little of the gain. If there is no row to compare, warns and
    returns None.
    """
    probed = pl.DataFrame(
        {"row": [rows[position] for position in probe.rows], **probe.row_losses},
        schema={"row": scores.schema["row"], **dict.fromkeys(probe.row_losses, pl.Float64)},
    )
    scored = scores.select("row", "conditioned_score", "num_answer_tokens").drop_nulls()
    both = probed.join(scored, on="row", maintain_order="left")
    if both.is_empty():
        if probe.rows:
            log.warning(
                "the scorer scored none of the %d probe rows: it is unknown whether it kept the "
                "gain",
                len(probe.rows),
            )
        return None
    base, tuned, scorer = (
        _mean(both[name].to_list(), both["num_answer_tokens"].to_list())
        for name in (BASE, TUNED, "conditioned_score")
    )
    warn_of_lost_gain("the scorer", base, tuned, scorer)
    kept = gain_kept(base, tuned, scorer)
    return Gain(both.height, len(probe.rows), base, tuned, scorer, kept)


def gain_kept(base: float, tuned: float, copy: float) -> float | None:
    """The share of the loss reduction that a copy keeps; None if training did not reduce it."""
    return (base - copy) / (base - tuned) if tuned < base else None


def warn_of_lost_gain(name: str, base: float, tuned: float, copy: float) -> None:
    """Logs a warning if training gained nothing, or if ``name`` keeps too little of the gain."""
    kept = gain_kept(base, tuned, copy)
    if kept is None:
        log.warning("training did not lower the loss: %.4f before, %.4f after", base, tuned)
    elif kept < KEPT_ENOUGH:
        log.warning(
            "%s keeps %.0f%% of what training taught (loss %.4f before, %.4f after, %.4f here); "
            "score with engine.dtype=float32, or with train.scorer_dtype=bfloat16",
            name,
            100 * kept,
            base,
            tuned,
            copy,
        )


def _mean(row_means: Sequence[float], num_tokens: Sequence[int]) -> float:
    """The mean over all tokens, from the mean of each row."""
    return float(np.average(row_means, weights=num_tokens))
