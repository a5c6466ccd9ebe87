"""How far the scores of an engine are from those of a reference that scored the same rows."""

from dataclasses import dataclass

import polars as pl

from cherry_vllm.schema import PASSES
from cherry_vllm.scoring.ifd import aggregate_logprobs, count_outcomes

MIN_RANKED = 20  # in the order of fewer rows, two neighbours that change places weigh too much
FULL_PRECISION = "float32"


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The absolute differences of one value."""

    median: float
    p99: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An engine's scores beside the reference's."""

    num_compared: int  # rows that both scored
    spearman: float | None  # of IFD; None if the rows have no order
    differences: dict[str, Differences]  # "logprob" in nats a token, and columns of SCORES
    outcomes: dict[str, list[int]]  # rows with each outcome: the engine's, the reference's
    num_other_tokens: int  # rows whose answers have other numbers of tokens
    num_scored_by_one: int  # rows that only one of the two scored
    num_crossed: int  # rows with an IFD above 1 by only one of the two


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an engine in order stays within."""

    min_spearman: float
    max_ifd_difference: float  # of the 99th percentile
    max_logprob_difference: float  # of the median token, in nats

    def find_faults(self, found: Agreement) -> list[str]:
        """What is beyond the bounds, a line each."""
        faults = []
        if found.spearman is not None and found.spearman < self.min_spearman:
            faults.append(f"Spearman {found.spearman:.5f}, below {self.min_spearman:g}")
        if found.num_compared:
            ifd, token = found.differences["ifd"].p99, found.differences["logprob"].median
            if not ifd <= self.max_ifd_difference:
                faults.append(
                    f"99th percentile of the IFD differences {ifd:.2g}, above "
                    f"{self.max_ifd_difference:g}"
                )
            if not token <= self.max_logprob_difference:
                faults.append(
                    f"median difference of log-probs {token:.2g} nats, above "
                    f"{self.max_logprob_difference:g}"
                )
        if found.num_scored_by_one:
            faults.append(f"{found.num_scored_by_one} rows scored by only one of the two")
        if found.num_other_tokens:
            faults.append(f"{found.num_other_tokens} rows with other tokens")
        return faults


# Well above what docs/results.md has for engines in order: on a GPU, fp32 is rounded to TF32.
BOUNDS = {
    True: Bounds(min_spearman=0.999, max_ifd_difference=2e-3, max_logprob_difference=2e-3),
    False: Bounds(min_spearman=0.98, max_ifd_difference=0.05, max_logprob_difference=0.1),
}


def usual_bounds(dtype: str) -> Bounds:
    """The bounds for an engine that computes in ``dtype``."""
    return BOUNDS[dtype == FULL_PRECISION]


def compare(found: pl.DataFrame, expected: pl.DataFrame) -> Agreement:
    """Compares two frames of :data:`schema.LOGPROBS` of the same rows, in the same order.

    Values are compared in rows that both scored with the same numbers of tokens.
    """
    scores = [aggregate_logprobs(frame.lazy()).collect() for frame in (found, expected)]
    counts = [count_outcomes(frame) for frame in scores]
    lengths = [_lengths(frame) for frame in (found, expected)]
    was_scored = [frame["ifd"].is_not_null() for frame in scores]
    both = was_scored[0] & was_scored[1]
    is_same = pl.Series([left == right for left, right in zip(*lengths, strict=True)])
    kept = both & is_same
    left, right = (frame.filter(kept) for frame in scores)
    tokens = [_tokens(frame.filter(kept)) for frame in (found, expected)]
    pairs = {
        "logprob": tokens,
        **{
            name: [left[name], right[name]] for name in ("conditioned_score", "direct_score", "ifd")
        },
    }
    above = [frame.filter(both)["ifd"] > 1 for frame in scores]
    return Agreement(
        num_compared=left.height,
        spearman=_spearman(left["ifd"], right["ifd"]),
        differences={name: _differences(*values) for name, values in pairs.items() if left.height},
        outcomes={
            name: [count[name] for count in counts]
            for name in counts[0]
            if any(count[name] for count in counts)
        },
        num_other_tokens=int((both & ~is_same).sum()),
        num_scored_by_one=int((was_scored[0] ^ was_scored[1]).sum()),
        num_crossed=int((above[0] ^ above[1]).sum()),
    )


def _lengths(logprobs: pl.DataFrame) -> list[object]:
    """Of each row, the number of tokens of each turn in both passes."""
    by_turn = [pl.col(name).list.eval(pl.element().list.len()) for name in PASSES]
    return logprobs.select(by_turn).rows()  # type: ignore[return-value]


def _tokens(logprobs: pl.DataFrame) -> pl.Series:
    """The log-probs of all tokens, of one pass after the other."""
    return pl.concat(
        [logprobs[name].explode().explode().cast(pl.Float64).alias("logprob") for name in PASSES]
    )


def _spearman(left: pl.Series, right: pl.Series) -> float | None:
    if left.len() < MIN_RANKED or min(left.n_unique(), right.n_unique()) == 1:
        return None
    found = pl.select(pl.corr(left, right, method="spearman")).item()
    return float(found)


def _differences(left: pl.Series, right: pl.Series) -> Differences:
    apart = (left - right).abs()
    return Differences(
        median=_quantile(apart, 0.5), p99=_quantile(apart, 0.99), largest=_quantile(apart, 1)
    )


def _quantile(values: pl.Series, share: float) -> float:
    return float(values.quantile(share, "linear") or 0.0)
