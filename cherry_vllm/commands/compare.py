"""``cherry-vllm compare-selections``: what two selections share, and what each prefers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.commands.job import Job, Outcome, find_output
from cherry_vllm.commands.select import extras_of
from cherry_vllm.commands.summary import show_overlap, show_rows
from cherry_vllm.config import Config, as_list
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable
from cherry_vllm.selection import overlap
from cherry_vllm.selection.chosen_rows import Selection, open_selection
from cherry_vllm.selection.columns import Sources
from cherry_vllm.selection.expressions import parse
from cherry_vllm.selection.quotas import divide
from cherry_vllm.selection.run import open_columns
from cherry_vllm.store.files import write_json
from cherry_vllm.store.marks import MADE_BY, marked_file
from cherry_vllm.store.scores import open_scores

COMMAND = "compare-selections"


def compare_selections(config: Config, job: Job) -> Outcome:
    """Compares two selections of the same scores, and prints what it finds.

    Raises:
        UserError: a selection is not given, not one, or of other scores; or the output must not
            be replaced.
    """
    settings = config.compare
    if settings.first is None or settings.second is None:
        raise UserError(
            "compare-selections: give two selections, as in compare-selections a.json b.json"
        )
    scored = open_scores(Path(config.scores_dir))
    first, second = (
        open_selection(Path(path), scored) for path in (settings.first, settings.second)
    )
    config = _with_strata(config, (first, second))
    scores, rows, sources = open_columns(scored, extras_of(config))
    scores = sources.add(scores, sources.find_unambiguous(scores.columns))
    grouped = overlap.group_rows(scores, first.rows, second.rows)
    facts = {
        "first": _describe(first),
        "second": _describe(second),
        **overlap.compare(grouped),
        "strata": _share_strata(config, scores, sources, first, second),
    }
    print(show_overlap(facts))
    for group in (overlap.FIRST, overlap.SECOND):
        some = _spread(grouped.filter(group=group), settings.num_examples)
        if some.height:
            print("\n".join(show_rows(group.replace("_", " "), some, rows)))
    if settings.output is None:
        return Outcome(job.output_dir, facts)
    output = find_output(job, "compare.output", settings.output)
    with marked_file(output, {MADE_BY: COMMAND}) as path:
        write_json(path, facts)
    print(printable(f"comparison: {output}"))
    return Outcome(output, facts)


def _describe(selection: Selection) -> dict[str, Any]:
    names = ("strategy", "num_selected", "num_answer_tokens")
    return {"output": str(selection.output), **{name: selection.mark[name] for name in names}}


def _with_strata(config: Config, selections: Sequence[Selection]) -> Config:
    """The settings, with the strata of the first selection that has any if they name none."""
    for chosen in selections:
        if not as_list(config.select.strata):
            choice, clusters = chosen.choice, chosen.mark.get("num_clusters")
            select = replace(
                config.select,
                strata=list(choice.strata),
                bins=choice.bins,
                num_clusters=clusters or config.select.num_clusters,
            )
            config = replace(config, select=select, seed=choice.seed)
    return config


def _share_strata(
    config: Config, scores: pl.DataFrame, sources: Sources, first: Selection, second: Selection
) -> dict[str, dict[str, int]]:
    """The rows of each stratum."""
    texts, bins = as_list(config.select.strata), config.select.bins
    if not texts:
        return {}
    expressions = [
        parse("select.strata", text, [*scores.columns, *sources.known]) for text in texts
    ]
    is_chosen = pl.col("row").is_in([*first.rows, *second.rows])
    pool = scores.filter(pl.col("drop_reason").is_null() | is_chosen)
    named = [name for each in expressions for name in each.columns]
    pool = sources.add(pool, [name for name in named if name not in pool.columns])
    for expression in expressions:
        expression.check(pool.columns, sources.known)
    return overlap.share_strata(pool, divide(pool, expressions, bins), first.rows, second.rows)


def _spread(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """``count`` of the rows, evenly spread over their order."""
    places = sorted({place * rows.height // count for place in range(count)}) if count else []
    return rows[places] if rows.height else rows
