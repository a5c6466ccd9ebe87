"""What a choice did, in counts: its steps, and the pool beside the choice."""

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.selection.columns import INSTRUCTION, RECORD
from cherry_vllm.selection.ranking import Chosen

KEY = "scores"  # of an exported row: its scores
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


def encode_rows(rows: Iterable[int]) -> str:
    """Row numbers as text, in order, with runs shortened: 0-3 7 9-12."""
    runs = [
        [row for _, row in run]
        for _, run in groupby(enumerate(sorted(rows)), key=lambda pair: pair[1] - pair[0])
    ]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def decode_rows(text: str) -> list[int]:
    """The row numbers that :func:`encode_rows` wrote.

    Raises:
        ValueError: it wrote no such text.
    """
    ends = [part.split("-") for part in text.split(" ")]
    return [row for run in ends for row in range(int(run[0]), int(run[-1]) + 1)]


def add_scores(records: pl.Series, rows: pl.DataFrame) -> pl.Series:
    """Records (JSON objects, as text) with the line of ``rows`` under the key :data:`KEY`.

    The rest of each record keeps its text.

    Raises:
        UserError: a record has such a key.
    """
    texts = [name for name in rows.columns if name == INSTRUCTION or name.startswith(RECORD)]
    lines = rows.drop("drop_reason", *texts).iter_rows(named=True)
    return pl.Series(
        "record", [_add(text, line) for text, line in zip(records, lines, strict=True)], pl.String
    )


def _add(record: str, line: dict[str, Any]) -> str:
    fields = json.loads(record)
    if KEY in fields:
        raise UserError(
            f"select.with_scores: row {line['row']} has a field {KEY!r} of its own; rename that, "
            "or leave the scores out"
        )
    begun = record.rstrip()[:-1].rstrip()
    separator = ", " if fields else ""
    scores = json.dumps(line, ensure_ascii=False, default=str)
    return f"{begun}{separator}{json.dumps(KEY)}: {scores}}}"
