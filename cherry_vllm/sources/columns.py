"""Which fields of the data are the instruction, the input and the answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cherry_vllm.errors import UserError

MAX_NAME_CHARS = 60


class Columns(NamedTuple):
    """The names, in the data, of the three fields; ``input`` is None where there is none."""

    instruction: str
    input: str | None
    output: str


def check_required(file: Path, columns: Columns, found: Sequence[str]) -> None:
    """Raises a UserError if ``found``, the names in ``file``, lacks a required field."""
    for field in ("instruction", "output"):
        name = getattr(columns, field)
        if name not in found:
            shown = ", ".join(_legible(name) for name in found[:12]) or "none"
            raise UserError(
                f"{file}: no field '{name}' (found: {shown}); name it with data.columns.{field}=..."
            )


def _legible(name: str) -> str:
    """A name that may be anything, on one line."""
    return (name if name.isprintable() else ascii(name))[:MAX_NAME_CHARS]
