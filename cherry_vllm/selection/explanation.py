"""What a choice did, in counts: its steps, and the pool beside the choice."""

from typing import Any

import polars as pl

from cherry_vllm.selection.ranking import Chosen

SHARES = "shares"  # of the mark
QUARTILES = (0.25, 0.5, 0.75)


def explain(chosen: Chosen) -> dict[str, Any]:
    """What goes into the mark.

    ``steps`` counts the rows that each step left; ``dropped`` counts, by reason, those that could
    not be chosen. ``lengths`` has the rows and answer tokens of pool and choice, with the quartiles
    of the answer tokens of a row. ``shares`` has the rows of each stratum in both, if there are
    several strata.
    """
    facts: dict[str, Any] = {
        "steps": chosen.steps,
        "dropped": chosen.dropped,
        "lengths": {"pool": _measure(chosen.pool), "selected": _measure(chosen.rows)},
    }
    if chosen.strata.height > 1:
        facts[SHARES] = {line.pop("stratum"): line for line in chosen.strata.iter_rows(named=True)}
    return facts


def _measure(rows: pl.DataFrame) -> dict[str, Any]:
    tokens = rows["num_answer_tokens"].cast(pl.Int64)
    return {
        "rows": rows.height,
        "answer_tokens": int(tokens.sum()),
        "quartiles": [tokens.quantile(q, "linear") for q in QUARTILES],
    }
