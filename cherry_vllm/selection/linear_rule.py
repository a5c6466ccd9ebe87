"""A linear rule over indicators, fitted to the losses of trained subsets (arXiv 2307.06290).

log loss = w_0 + w_1 x_1 + ... + w_n x_n

x_i is the mean of an indicator over a subset, and the loss that of a model trained on the subset,
on held-out data. The weights are those of least squares. A row is ranked by the loss that the rule
predicts for it, lowest first.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line, printable
from cherry_vllm.selection.expressions import Expression, evaluate, parse

ROWS = "rows"  # a column: the row numbers of a subset
READERS: dict[str, Callable[..., pl.DataFrame]] = {
    ".csv": pl.read_csv,
    ".parquet": pl.read_parquet,
}
# A strategy for --config-dir. Its values are JSON, which YAML reads whatever they hold.
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
    are_expressions: bool = False  # the indicators, in SQL; else they are names of columns

    @property
    def rank(self) -> str:
        """The SQL expression that ranks rows: minus the predicted log loss."""
        return " + ".join(
            f"{-weight:.6g} * {self._operand(name)}" for name, weight in self.weights.items()
        )

    def _operand(self, name: str) -> str:
        if self.are_expressions and not name.isidentifier():
            return f"({name})"
        return '"' + name.replace('"', '""') + '"'

    def write(self, path: Path, table: Path, name: str) -> None:
        """Writes the strategy ``name`` as a file of the group ``select``."""
        text = STRATEGY.format(
            num_subsets=self.num_subsets,
            table=printable(table.name),
            r_squared=self.r_squared,
            name=json.dumps(name, ensure_ascii=False),
            rank=json.dumps(self.rank, ensure_ascii=False),
        )
        path.write_text(text, encoding="utf-8")


def fit(
    table: Path, frame: pl.DataFrame, loss: str, *, are_expressions: bool = False
) -> LinearRule:
    """Fits the rule to a frame with a line for each trained subset, read from ``table``.

    ``loss`` is the column of the losses; all other columns of numbers are indicators. With
    ``are_expressions``, their names are the SQL that :func:`measure` measured.

    Raises:
        UserError: there are no such columns, other values than numbers, a column of indicators
            without a name, too few lines, or only one loss.
    """
    indicators = _find_indicators(table, frame, loss)
    if loss not in frame.columns or not indicators:
        raise UserError(
            f"{table}: needs the column {loss} (fit.loss) and columns of indicators; there are "
            f"{', '.join(frame.columns)}"
        )
    values = frame.select(indicators).cast(pl.Float64).to_numpy()
    losses = frame[loss].cast(pl.Float64, strict=False).to_numpy()
    if not (np.isfinite(values).all() and np.isfinite(losses).all() and (losses > 0).all()):
        raise UserError(f"{table}: a value is missing or not finite, or a loss is not above 0")
    if (losses == losses[:1]).all():
        raise UserError(f"{table}: all losses are equal, so no rule follows; train other subsets")
    design = np.column_stack([np.ones(len(values)), values])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise UserError(
            f"{table}: {len(values)} subsets do not determine {len(indicators)} weights and an "
            "intercept; train more subsets, or leave out indicators that follow from others"
        )
    target = np.log(losses)
    found = np.linalg.lstsq(design, target, rcond=None)[0]
    rest, spread = target - design @ found, target - target.mean()
    explained = 1 - float(rest @ rest) / float(spread @ spread)
    weights = dict(zip(indicators, map(float, found[1:]), strict=True))
    return LinearRule(weights, float(found[0]), explained, len(values), are_expressions)


def _find_indicators(table: Path, frame: pl.DataFrame, loss: str) -> list[str]:
    """The columns of numbers; refuses one that text such as "NA" makes one of text."""
    found = [name for name in frame.columns if name != loss and frame[name].dtype.is_numeric()]
    for name in frame.select(pl.col(pl.String).exclude(loss)).columns:
        texts = frame[name].drop_nulls()
        is_number = texts.cast(pl.Float64, strict=False).is_not_null()
        if is_number.any():
            odd = [*texts.filter(~is_number), "numbers as text"][0]
            raise UserError(f"{table}: column {name}: {odd}; give numbers, or leave the column out")
    if not all(map(str.strip, found)):
        raise UserError(
            f"{table}: a column of numbers without a name; name it, or leave it out if it only "
            "counts the lines"
        )
    return found


def measure(frame: pl.DataFrame, rows: pl.DataFrame, indicators: list[str]) -> pl.DataFrame:
    """A frame of subsets with the mean of each indicator over a subset's rows.

    ``frame`` has the numbers of these rows in the column :data:`ROWS`, which is dropped, and
    ``rows`` has the columns that the indicators (SQL expressions) name.

    Raises:
        UserError: an indicator is not a number for each row of the subsets, or is given twice.
    """
    means = frame.drop(ROWS)
    for text in indicators:
        indicator = parse("fit.indicators", text, rows.columns)
        indicator.check(rows.columns)
        if text in means.columns:
            raise indicator.refuse("given twice, or the name of fit.loss; give other indicators")
        means = means.with_columns(_means(indicator, rows, frame[ROWS]).alias(text))
    return means


def _means(indicator: Expression, rows: pl.DataFrame, subsets: pl.Series) -> pl.Series:
    """The mean of an indicator over each subset, a list of row numbers."""
    values = evaluate(indicator, rows)
    if not values.dtype.is_numeric():
        raise indicator.refuse(f"{values.dtype}, not a number; give one to take means of")
    held = rows.select("row", value=values.cast(pl.Float64))
    chosen = subsets.rename("row").to_frame().with_row_index("subset").explode("row")
    found = chosen.join(held, on="row", how="left", maintain_order="left")
    is_lacking = ~pl.col("value").is_finite().fill_null(value=False)
    lacking = found.filter(is_lacking)["row"].unique().sort().to_list()
    if lacking:
        raise indicator.refuse(
            f"no finite number in {len(lacking)} of the subsets' rows, such as row {lacking[0]}; "
            "give it one, as in coalesce(rating, 0)"
        )
    by_subset = found.group_by("subset", maintain_order=True).agg(pl.col("value").mean())
    return by_subset["value"]


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
        raise UserError(f"{table}: cannot be read ({first_line(error)}); check fit.table") from None
