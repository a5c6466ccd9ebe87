"""A linear rule over indicators, fitted to the losses of trained subsets (arXiv 2307.06290).

log loss = w_0 + w_1 x_1 + ... + w_n x_n

x_i is the mean of an indicator over a subset, and the loss that of a model trained on the subset,
on held-out data. The weights are those of least squares. A row is ranked by the loss that the rule
predicts for it, lowest first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.selection.expressions import evaluate, parse

ROWS = "rows"  # a column: the row numbers of a subset
READERS: dict[str, Callable[..., pl.DataFrame]] = {
    ".csv": pl.read_csv,
    ".parquet": pl.read_parquet,
}
# A strategy for --config-dir.
STRATEGY = """\
# A linear rule fitted to {num_subsets} trained subsets of {table}: R2 {r_squared:.3f} of log loss.
defaults:
  - cherry
  - _self_
name: {name}
rank: {rank}
"""


@dataclass(frozen=True)
class LinearRule:
    """The fitted rule."""

    weights: dict[str, float]  # of each indicator, on log loss
    intercept: float
    r_squared: float
    num_subsets: int

    @property
    def rank(self) -> str:
        """The SQL expression that ranks rows: minus the predicted log loss."""
        terms = [
            f'{-weight:.6g} * "{name}"' if name.isidentifier() else f"{-weight:.6g} * ({name})"
            for name, weight in self.weights.items()
        ]
        return " + ".join(terms)

    def write(self, path: Path, table: Path, name: str) -> None:
        """Writes the strategy ``name`` as a file of the group ``select``."""
        text = STRATEGY.format(
            num_subsets=self.num_subsets,
            table=table.name,
            r_squared=self.r_squared,
            name=name,
            rank=f"'{self.rank}'",
        )
        path.write_text(text, encoding="utf-8")


def fit(table: Path, frame: pl.DataFrame, loss: str) -> LinearRule:
    """Fits the rule to a frame with a line for each trained subset, read from ``table``.

    ``loss`` is the column of the losses; all other columns of numbers are indicators.

    Raises:
        UserError: there are no such columns, other values than numbers, or too few lines.
    """
    indicators = [name for name in frame.columns if name != loss and frame[name].dtype.is_numeric()]
    if loss not in frame.columns or not indicators:
        raise UserError(
            f"{table}: needs the column {loss} (fit.loss) and columns of indicators; there are "
            f"{', '.join(frame.columns)}"
        )
    values = frame.select(indicators).cast(pl.Float64).to_numpy()
    losses = frame[loss].cast(pl.Float64, strict=False).to_numpy()
    if not (np.isfinite(values).all() and np.isfinite(losses).all() and (losses > 0).all()):
        raise UserError(f"{table}: a value is missing or not finite, or a loss is not above 0")
    design = np.column_stack([np.ones(len(values)), values])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise UserError(
            f"{table}: {len(values)} subsets do not determine {len(indicators)} weights and an "
            "intercept; train more subsets, or leave out indicators that follow from others"
        )
    target = np.log(losses)
    found = np.linalg.lstsq(design, target, rcond=None)[0]
    rest, spread = target - design @ found, target - target.mean()
    explained = 1 - float(rest @ rest) / float(spread @ spread) if spread.any() else 1.0
    weights = dict(zip(indicators, map(float, found[1:]), strict=True))
    return LinearRule(weights, float(found[0]), explained, len(values))


def measure(frame: pl.DataFrame, rows: pl.DataFrame, indicators: list[str]) -> pl.DataFrame:
    """A frame of subsets with the mean of each indicator over a subset's rows.

    ``frame`` has the numbers of these rows in the column :data:`ROWS`, which is dropped, and
    ``rows`` has the columns that the indicators (SQL expressions) name.

    Raises:
        UserError: an indicator is no number of each row.
    """
    parsed = [parse("fit.indicators", text, rows.columns) for text in indicators]
    for expression in parsed:
        expression.check(rows.columns)
    values = {one.text: evaluate(one, rows).cast(pl.Float64) for one in parsed}
    means = rows.select("row", **values).join(
        frame.with_row_index("subset").select("subset", row=ROWS).explode("row"), on="row"
    )
    found = means.group_by("subset").agg(pl.col(indicators).mean()).sort("subset")
    return frame.drop(ROWS).hstack(found.select(indicators))


def read_subsets(table: Path) -> pl.DataFrame:
    """Reads a CSV or Parquet file.

    Raises:
        UserError: it cannot be read.
    """
    reader = READERS.get(table.suffix)
    if reader is None:
        raise UserError(f"{table}: give a .csv or .parquet file as fit.table")
    try:
        return reader(table, glob=False)
    except FileNotFoundError:
        raise UserError(f"{table}: no such file; check fit.table") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{table}: cannot be read ({str(error).strip().splitlines()[0]}); check fit.table"
        ) from None
