"""``cherry-vllm fit``: fits a linear rule to the losses of trained subsets."""

from pathlib import Path

import polars as pl

from cherry_vllm.commands.job import Job, Outcome, find_output
from cherry_vllm.commands.select import extras_of
from cherry_vllm.commands.summary import describe
from cherry_vllm.config import Config, as_list
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable
from cherry_vllm.selection.chosen_rows import open_selection
from cherry_vllm.selection.expressions import parse
from cherry_vllm.selection.linear_rule import ROWS, measure, read_subsets
from cherry_vllm.selection.linear_rule import fit as fit_rule
from cherry_vllm.selection.run import open_columns
from cherry_vllm.store.marks import MADE_BY, marked_file
from cherry_vllm.store.scores import open_scores

COMMAND = "fit"
SELECTION = "selection"  # a column of the table


def fit(config: Config, job: Job) -> Outcome:
    """Fits the rule and writes it as a selection strategy.

    Raises:
        UserError: the table is not given or cannot be used, or the output must not be replaced.
    """
    settings = config.fit
    if settings.table is None:
        raise UserError("fit.table: not given; add fit.table=... (a .csv or .parquet file)")
    output = find_output(job, "fit.output", settings.output)
    table = Path(settings.table)
    subsets = read_subsets(table)
    if settings.indicators:
        subsets = _measure(config, table, subsets)
    rule = fit_rule(table, subsets, settings.loss, are_expressions=bool(settings.indicators))
    facts = {"weights": rule.weights, "intercept": rule.intercept, "r_squared": rule.r_squared}
    with marked_file(output, {MADE_BY: COMMAND, **facts}) as path:
        rule.write(path, table, output.stem)
    print(describe("log loss", {"intercept": rule.intercept, **rule.weights}))
    print(f"R2 {rule.r_squared:.3f}, {rule.num_subsets} subsets")
    folder = output.parent.parent
    print(printable(f"{output}: use it with --config-dir {folder} select={output.stem}"))
    return Outcome(output, facts)


def _measure(config: Config, table: Path, subsets: pl.DataFrame) -> pl.DataFrame:
    """The subsets with the means of the indicators over the rows that each selection holds."""
    if SELECTION not in subsets.columns:
        raise UserError(
            f"{table}: fit.indicators needs a column {SELECTION}: what `select` wrote for each"
        )
    if config.fit.loss not in subsets.columns:
        raise UserError(
            f"{table}: needs the column {config.fit.loss} (fit.loss); there are "
            f"{', '.join(subsets.columns)}"
        )
    scored, texts = open_scores(Path(config.scores_dir)), as_list(config.fit.indicators)
    scores, _, sources = open_columns(scored, extras_of(config))
    named = [
        name for text in texts for name in parse("fit.indicators", text, sources.known).columns
    ]
    chosen = [open_selection(Path(str(path)), scored).rows for path in subsets[SELECTION]]
    held = subsets.select(config.fit.loss).with_columns(pl.Series(ROWS, chosen))
    return measure(held, sources.add(scores, named), texts)
