"""Which fields of the data are the instruction, the input and the answer."""

from collections.abc import Iterable
from dataclasses import dataclass

# Fields that belong to the question in common data sets: without them, answers lack their context.
CONTEXT_FIELDS = (
    "system",
    "system_prompt",
    "history",
    "chat_history",
    "context",
    "input",
    "passage",
    "document",
    "documents",
    "image",
    "images",
    "tools",
)
CONVERSATION_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog")
CONVERT = (
    "conversations are not read: convert each to a record of 'instruction', the user's text, and "
    "'output', the answer"
)
MAX_NAMES, MAX_NAME_CHARS = 12, 60


@dataclass(frozen=True)
class Columns:
    """The names of the three fields in the data; ``input`` is None if there is none."""

    instruction: str
    input: str | None
    output: str

    def names(self) -> dict[str, str]:
        """The names of the fields that the data have, by key of ``data.columns``."""
        named = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return {key: name for key, name in named.items() if name is not None}

    def unread_context(self) -> list[str]:
        """Fields that would hold context, but are not read."""
        read = set(self.names().values())
        return [name for name in CONTEXT_FIELDS if name not in read]


def missing_field(columns: Columns, found: Iterable[str]) -> str | None:
    """An error for data whose fields ``found`` lack the instruction or the answer, else None."""
    names = list(found)
    for key in ("instruction", "output"):
        name = columns.names()[key]
        if name in names:
            continue
        conversations = next((field for field in CONVERSATION_FIELDS if field in names), None)
        if conversations:
            return f"no field '{name}', but '{conversations}'; {CONVERT}"
        return f"no field '{name}' (found: {legible(names)}); name it with data.columns.{key}=..."
    return None


def legible(names: Iterable[str]) -> str:
    """Names, which may hold anything, on one printable line."""
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(name[:MAX_NAME_CHARS] for name in shown[:MAX_NAMES]) or "none"
