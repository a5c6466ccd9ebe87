"""The table of a comparison: on the console, in Markdown, and with all numbers in JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from bench.comparison.bootstrap import Difference
from bench.comparison.results import Line, Overlap, SetLoss
from cherry_vllm.runtime.text import in_columns


def show_table(lines: Sequence[Line]) -> str:
    """The table for the console."""
    return in_columns(_cells(lines))


def write_markdown(lines: Sequence[Line], notes: Iterable[str]) -> str:
    """The table and notes as a Markdown page."""
    head, *rows = _cells(lines)
    table = [head, ["---"] * len(head), *rows]
    shown = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([*shown, "", *(f"- {note}" for note in notes)]) + "\n"


def to_json(lines: Sequence[Line], overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """All numbers of the table."""
    return {
        "models": [
            {
                **asdict(line),
                "losses": {name: _loss_json(loss) for name, loss in line.losses.items()},
            }
            for line in lines
        ],
        "overlaps": [asdict(overlap) for overlap in overlaps],
    }


def _loss_json(loss: SetLoss) -> dict[str, Any]:
    difference = loss.difference._asdict() if loss.difference else None
    return {"mean": loss.mean, "by_seed": loss.by_seed, "difference": difference}


def _cells(lines: Sequence[Line]) -> list[list[str]]:
    sets = [name for line in lines[:1] for name in line.losses]
    head = ["model", "seeds", "rows", "answer tokens"]
    head += [cell for name in sets for cell in (f"{name} loss", "to random (95% interval)")]
    return [head, *(_line(line) for line in lines)]


def _line(line: Line) -> list[str]:
    seeds = str(len(line.seeds)) if line.seeds else ""
    counts = [line.num_rows, line.num_answer_tokens]
    shown = ["" if count is None else f"{count:,.0f}" for count in counts]
    losses = [
        cell
        for loss in line.losses.values()
        for cell in (f"{loss.mean:.4f}", _show(loss.difference))
    ]
    return [line.name, seeds, *shown, *losses]


def _show(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference)
