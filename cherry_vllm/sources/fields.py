"""Which fields of a record hold its conversation, by name or by the conventions of the field."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

AUTO = "auto"  # in place of a name: the first of CONVENTIONS that a record has
CONVENTIONS = {
    "instruction": ("instruction", "prompt", "question", "query", "inputs"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "answer", "answers", "targets", "target"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "tools": ("tools", "functions"),
}
REQUIRED = ("instruction", "output")
CONVENTIONAL_INPUT = "input"  # may be absent; any other name was given by the user
FIELD_KEYS = ("instruction", "input", "output", "system", "history", "tools")
MESSAGES_KEYS = ("messages", "system", "tools")
# Fields that belong to the question in common data sets: without them, answers lack their context.
CONTEXT_FIELDS = (
    "system",
    "system_prompt",
    "system_instruction",
    "systeminstruction",
    "history",
    "chat_history",
    "context",
    "input",
    "passage",
    "document",
    "documents",
    "article",
    "definition",
    "options",
    "choices",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "tools",
    "functions",
)
MAX_NAMES, MAX_NAME_CHARS = 12, 60
MAX_CHOICES = 1000


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

    def choose(self, fields: Mapping[str, Any]) -> "ChosenFields":
        """The fields of a record that are read. A record of messages needs nothing else."""
        found = {key: self._find(key, fields) for key in CONVENTIONS}
        wanted: tuple[str, ...] = FIELD_KEYS
        if self._takes_messages(found, fields):
            wanted = MESSAGES_KEYS
        elif found["instruction"] is None and self.instruction == AUTO:  # as in "input, output"
            found["instruction"], found["input"] = found["input"], None
        names = {key: name for key in wanted if (name := found[key]) is not None}
        read = {part for name in names.values() for part in (name, name.partition(".")[0])}
        unread = (name for name in fields if name not in read and self._is_context(name, names))
        return ChosenFields(names, tuple(unread))

    @staticmethod
    def _is_context(name: str, chosen: Mapping[str, str]) -> bool:
        """Whether a field that is not read would hold context by its name."""
        is_request = "messages" not in chosen and name in CONVENTIONS["instruction"]
        return is_request or name.lower() in CONTEXT_FIELDS

    def _takes_messages(self, found: Mapping[str, str | None], fields: Mapping[str, Any]) -> bool:
        if self.messages != AUTO:
            return self.messages is not None
        if found["messages"] is None or {self.instruction, self.output} != {AUTO}:
            return False
        value = fields[found["messages"]]
        return found["instruction"] is None or (isinstance(value, list) and bool(value))

    def _find(self, key: str, fields: Mapping[str, Any]) -> str | None:
        name = getattr(self, key)
        if name == AUTO:
            present = [known for known in CONVENTIONS[key] if known in fields]
            filled = (known for known in present if fields[known] is not None)
            return next(filled, present[0] if present else None)
        return name if name is not None and has_field(fields, name) else None


@dataclass(frozen=True)
class ChosenFields:
    """The names of the fields that are read, by key of ``data.columns``; context that is not."""

    names: dict[str, str]
    unread: tuple[str, ...] = ()

    @cached_property
    def line(self) -> str:
        """The names on one line, for people."""
        named = (name if name == key else f"{name} as {key}" for key, name in self.names.items())
        return legible(named)

    @property
    def is_whole(self) -> bool:
        """Whether these fields make a conversation."""
        return "messages" in self.names or {*REQUIRED} <= self.names.keys()


class Chooser:
    """:meth:`Columns.choose` for many records: once for all that have the same fields."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._is_nested = any("." in name for name in columns.named().values())
        self._known: dict[tuple[Any, ...], ChosenFields] = {}

    def choose(self, fields: Mapping[str, Any]) -> ChosenFields:
        """The fields of a record that are read."""
        if self._is_nested:  # whether such a field is there depends on values
            return self._columns.choose(fields)
        kind = (*fields, *(None if value == [] else type(value) for value in fields.values()))
        chosen = self._known.get(kind)
        if chosen is None:
            if len(self._known) == MAX_CHOICES:
                self._known.clear()
            chosen = self._known[kind] = self._columns.choose(fields)
        return chosen


def find_field(fields: Any, name: str) -> Any:
    """The value of a field; None if there is none. A list of one text is that text."""
    if isinstance(fields, dict) and name in fields:
        found = fields[name]
        if type(found) is str:
            return found
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


def missing_field(columns: Columns, fields: Mapping[str, Any]) -> str | None:
    """An error for fields that lack what a conversation needs, else None."""
    if columns.choose(fields).is_whole:
        return None
    named = columns.messages not in (AUTO, None)
    for key in ("messages",) if named else REQUIRED:
        name = getattr(columns, key)
        known = CONVENTIONS[key] if name == AUTO else (name,)
        if not any(has_field(fields, other) for other in known):
            lack = f"no field for the {key}" if name == AUTO else f"no field '{name}'"
            advice = f"name it with data.columns.{key}=..."
            if name == AUTO:
                advice += ", or conversations with data.columns.messages=..."
            return f"{lack} (found: {legible(fields)}); {advice}"
    return None


def legible(names: Iterable[str]) -> str:
    """Names, which may hold anything, on one printable line."""
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(name[:MAX_NAME_CHARS] for name in shown[:MAX_NAMES]) or "none"
