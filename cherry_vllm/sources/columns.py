"""Which fields of a record hold its conversation, by name or by the conventions of the field."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

AUTO = "auto"  # in place of a name: the first of CONVENTIONS that a record has
CONVENTIONS = {
    "instruction": ("instruction", "prompt", "question", "query", "inputs"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "answer", "answers", "targets", "target"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "tools": ("tools",),
}
REQUIRED = ("instruction", "output")
FIELD_KEYS = ("instruction", "input", "output", "system", "history", "tools")
MESSAGES_KEYS = ("messages", "system", "tools")
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
MAX_NAMES, MAX_NAME_CHARS = 12, 60


@dataclass(frozen=True)
class Columns:
    """The names of the fields; :data:`AUTO` follows the conventions, None reads no such field.

    A name may be nested, as in ``task.question`` or ``answers.0``.
    """

    instruction: str = AUTO
    input: str | None = AUTO
    output: str = AUTO
    system: str | None = AUTO
    history: str | None = AUTO
    messages: str | None = AUTO
    tools: str | None = AUTO

    def named(self) -> dict[str, str]:
        """The names that the user gave, by key of ``data.columns``."""
        return {key: name for key, name in asdict(self).items() if name not in (AUTO, None)}

    def resolve(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The names of the fields that a record has, by key of ``data.columns``.

        A record of messages has no instruction and no output.
        """
        found = {key: self._find(key, fields) for key in CONVENTIONS}
        wanted = FIELD_KEYS
        if self._takes_messages(found, fields):
            wanted = MESSAGES_KEYS
        elif found["instruction"] is None and self.instruction == AUTO:  # as in "input, output"
            found["instruction"], found["input"] = found["input"], None
        return {key: name for key in wanted if (name := found[key]) is not None}

    def _takes_messages(self, found: Mapping[str, str | None], fields: Mapping[str, Any]) -> bool:
        if self.messages != AUTO:
            return self.messages is not None
        if found["messages"] is None or {self.instruction, self.output} != {AUTO}:
            return False
        return found["instruction"] is None or isinstance(fields[found["messages"]], list)

    def _find(self, key: str, fields: Mapping[str, Any]) -> str | None:
        name = getattr(self, key)
        if name == AUTO:
            return next((known for known in CONVENTIONS[key] if known in fields), None)
        return name if name is not None and has_field(fields, name) else None


def find_field(fields: Any, name: str) -> Any:
    """The value of a field; None if there is none. A list of one text is that text."""
    if isinstance(fields, dict) and name in fields:
        found = fields[name]
    else:
        found = fields
        for part in name.split("."):
            if isinstance(found, list) and part.isdecimal():
                found = found[int(part)] if int(part) < len(found) else None
            else:
                found = found.get(part) if isinstance(found, dict) else None
    is_single = isinstance(found, list) and len(found) == 1 and isinstance(found[0], str)
    return found[0] if is_single else found


def has_field(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a record has a field, which may be null."""
    return name in fields or ("." in name and find_field(fields, name) is not None)


def missing_field(columns: Columns, found: Iterable[str]) -> str | None:
    """An error for fields ``found`` that lack what a conversation needs, else None."""
    names = dict.fromkeys(found)
    named = columns.messages not in (AUTO, None)
    for key in ("messages",) if named else REQUIRED:
        name = getattr(columns, key)
        known = CONVENTIONS[key] if name == AUTO else (name, name.partition(".")[0])
        if not any(other in names for other in known):
            lack = f"no field for the {key}" if name == AUTO else f"no field '{name}'"
            advice = f"name it with data.columns.{key}=..."
            if name == AUTO:
                advice += ", or conversations with data.columns.messages=..."
            return f"{lack} (found: {legible(names)}); {advice}"
    return None


def legible(names: Iterable[str]) -> str:
    """Names, which may hold anything, on one printable line."""
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(name[:MAX_NAME_CHARS] for name in shown[:MAX_NAMES]) or "none"
