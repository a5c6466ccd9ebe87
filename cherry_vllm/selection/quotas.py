"""How many rows each stratum gives, by largest remainders, and which strata there are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.selection.columns import CLUSTER
from cherry_vllm.selection.expressions import Expression, evaluate

NO_VALUE = "no value"  # the label of rows in which an expression is null
MAX_STRATA = 10_000


class Strata(NamedTuple):
    """The stratum of each row, as a position in ``labels``."""

    codes: pl.Series
    labels: list[str]


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """``total`` in whole parts in proportion to ``weights``, by largest remainders.

    Each part is its exact share, rounded down; the places that are left go to the largest
    remainders, of equal ones to the first.
    """
    whole = sum(weights)
    shares = [total * weight / whole for weight in weights]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def allocate(total: int, weights: Sequence[Fraction], capacities: Sequence[int]) -> list[int]:
    """Like :func:`apportion`, but no part exceeds its capacity.

    Strata that are too small are taken whole, and the others share what is left in the same way.
    Strata of weight 0 get nothing. The sum is less than ``total`` only if all others are full.
    """
    parts = [0] * len(weights)
    room = [i for i, weight in enumerate(weights) if weight]
    while room and total:
        shares = dict(zip(room, apportion(total, [weights[i] for i in room]), strict=True))
        full = [i for i in room if shares[i] > capacities[i]]
        for i in full or room:
            parts[i] = min(shares[i], capacities[i])
            total -= parts[i]
        room = [i for i in room if i not in full] if full else []
    return parts


def divide(frame: pl.DataFrame, expressions: Sequence[Expression], bins: int) -> Strata:
    """The strata of the rows of ``frame``: one for each combination of values that occurs.

    Numbers with more than ``bins`` different values are cut into that many bins of about
    equally many rows, except clusters; equal values are in one bin. Without expressions all rows
    are one stratum.

    Raises:
        UserError: an expression has no value for each row, or two strata have one label.
    """
    codes = pl.repeat(0, frame.height, dtype=pl.Int64, eager=True)
    labels: list[tuple[str, ...]] = [()]
    for expression in expressions:
        more, names = _divide_by(evaluate(expression, frame), expression, bins)
        both = codes * len(names) + more
        present = both.unique().sort()
        if present.len() > MAX_STRATA:
            raise expression.refuse(
                f"more than {MAX_STRATA:,} strata; choose one with fewer values"
            )
        labels = [(*labels[code // len(names)], names[code % len(names)]) for code in present]
        codes = pl.Series(np.searchsorted(present.to_numpy(), both.to_numpy()), dtype=pl.Int64)
    counts = Counter(" / ".join(parts) for parts in labels)
    for label, count in counts.items():
        if count > 1:
            raise UserError(
                f"select.strata: {count} strata are called {label}; give their values other "
                "names, as in coalesce(record.source, 'none')"
            )
    return Strata(codes, list(counts))


def weigh(
    quota: str | Mapping[str, float], labels: Sequence[str], sizes: Sequence[int]
) -> list[Fraction]:
    """The weight of each stratum; ``sizes`` are those in the pool.

    Raises:
        UserError: a mapping names a stratum that does not exist.
    """
    if quota == "proportional":
        return [Fraction(size) for size in sizes]
    if isinstance(quota, str):
        return [Fraction(1)] * len(labels)
    for name in quota:
        if str(name) not in labels:
            raise UserError(
                f"select.quota: no stratum {name}; there are {', '.join(sorted(labels)[:20])}"
            )
    weights = {str(name): Fraction(str(weight)) for name, weight in quota.items()}
    return [weights.get(label, Fraction(0)) for label in labels]


def _divide_by(values: pl.Series, expression: Expression, bins: int) -> tuple[pl.Series, list[str]]:
    """The code of each value and the labels of the codes, in order; null is the last."""
    if values.dtype.is_nested():
        raise expression.refuse("lists or objects; name one value of each row")
    is_number = values.dtype.is_numeric() and not expression.is_column(CLUSTER)
    is_cut = is_number and values.drop_nulls().n_unique() > bins
    places = _bins(values, bins) if is_cut else values
    held = pl.DataFrame({"code": places.rank("dense"), "value": values}).drop_nulls()
    ends = held.group_by("code").agg(low=pl.min("value"), high=pl.max("value")).sort("code")
    labels = _name(ends, short=True, is_cut=is_cut)
    if len(set(labels)) < len(labels):
        labels = _name(ends, short=False, is_cut=is_cut)
    codes = places.rank("dense").cast(pl.Int64) - 1
    return codes.fill_null(len(labels)), [*labels, NO_VALUE]


def _bins(values: pl.Series, bins: int) -> pl.Series:
    """The quantile bin of each number; null stays null."""
    present = values.drop_nulls().to_numpy()
    edges = np.quantile(present, np.arange(1, bins) / bins, method="inverted_cdf")
    places = pl.Series(np.searchsorted(edges, values.fill_null(0).to_numpy()))
    return (
        places.to_frame("place").select(pl.when(values.is_not_null()).then(pl.first())).to_series()
    )


def _name(ends: pl.DataFrame, *, short: bool, is_cut: bool) -> list[str]:
    """The labels of codes, from their least and greatest values."""

    def show(value: object) -> str:
        return f"{value:g}" if short and isinstance(value, float) else str(value)

    return [
        f"{show(low)} to {show(high)}" if is_cut else show(low) for _, low, high in ends.iter_rows()
    ]
