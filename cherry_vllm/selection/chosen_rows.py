"""The numbers of chosen rows, as the mark of a selection holds them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.outputs import COMMAND
from cherry_vllm.store.files import read_json
from cherry_vllm.store.marks import MADE_BY, SUFFIX, read_mark
from cherry_vllm.store.scores import Scores

ROWS = "rows"  # a key of the mark
FAULTS = (AttributeError, KeyError, TypeError, ValueError, UserError)  # of an edited mark
NOT_OURS = "not what `cherry-vllm select` wrote, or edited; select again"


@dataclass(frozen=True)
class Selection:
    """What ``select`` chose, once."""

    output: Path  # what it wrote, or the mark beside that
    mark: dict[str, Any]
    choice: Choice
    rows: list[int]


def open_selection(output: Path, scored: Scores) -> Selection:
    """What ``select`` chose by the scores ``scored`` and wrote to a file, or to a folder.

    ``output`` may also be the mark itself, a ``.meta.json``, whose file may be gone.

    Raises:
        UserError: there is no such selection, it was edited, or other scores decided it.
    """
    if not output.exists():
        raise UserError(f"{output}: no such file; give what `cherry-vllm select` wrote")
    mark = read_json(output) if output.name.endswith(SUFFIX) else read_mark(output)
    if not isinstance(mark, dict) or mark.get(MADE_BY) != COMMAND or ROWS not in mark:
        raise UserError(f"{output}: {NOT_OURS}")
    if mark.get("scores") != scored.fingerprint:
        raise UserError(
            f"{output}: chosen by other scores than those in {scored.folder}; give the run_dir or "
            "scores_dir that it was chosen from"
        )
    try:
        rows, choice = decode_rows(mark[ROWS]), Choice.from_json(mark)
        counts = [mark[name] for name in ("num_selected", "num_answer_tokens")]
    except FAULTS:
        raise UserError(f"{output}: {NOT_OURS}") from None
    is_whole = all(isinstance(count, int) for count in counts)
    if not is_whole or counts[0] != len(rows) or rows[-1] >= scored.frame.height:
        raise UserError(f"{output}: {NOT_OURS}")
    return Selection(output, mark, choice, rows)


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
