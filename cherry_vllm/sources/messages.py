"""A list of messages, by any of the usual names of roles and fields, to messages."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cherry_vllm.conversation import ASSISTANT, CALL_FIELDS, SYSTEM, TOOL, USER, Message
from cherry_vllm.sources.values import (
    UnreadableError,
    as_json,
    as_text,
    check_text,
    decode_json,
    is_messages,
    kind_of,
    shorten,
)

# What data sets call the roles.
ROLE_NAMES = {
    SYSTEM: ("system", "developer"),
    USER: ("user", "human", "prompter", "instruction"),
    ASSISTANT: ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "chatbot", "bot", "ai"),
    TOOL: ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
CALLING_ROLES = ("function_call", "tool_call")  # of messages that call a tool
CALLS, OLD_CALL = CALL_FIELDS
ROLE_FIELDS, TEXT_FIELDS = ("role", "from"), ("content", "value", "text", "parts")
MASKS = ("weight", "train", "loss")  # 0 or false: the message is not learned from
TEXT_PARTS = (None, "text", "input_text", "output_text")
OWN_FIELDS = {*ROLE_FIELDS, *TEXT_FIELDS, *MASKS}


def read_messages(value: Any, name: str, numbers: list[str]) -> Iterator[Message]:
    """The messages in the field ``name``: a list of objects, or its JSON text.

    ``numbers`` gets the name once if a message is a number instead of text.

    Raises:
        UnreadableError: it is not such a list, or a message has an unknown role or something other
            than text.
    """
    if value is None:
        raise UnreadableError(f"field '{name}' is null")
    if isinstance(value, str):
        value = decode_json(value, name, "a list of messages")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not a list of messages")
    texts = [first_of(fields, TEXT_FIELDS) for fields in value]
    if any(isinstance(text, int | float) for text in texts):
        numbers.append(name)
    others = {key for fields in value for key in fields} - OWN_FIELDS - {*CALL_FIELDS}
    if others and all(text is None for text in texts):
        raise UnreadableError(
            f"field '{name}' has messages without {' or '.join(TEXT_FIELDS)} (found: "
            f"{shorten(', '.join(sorted(others)))})"
        )
    for place, fields in enumerate(value):
        try:
            yield _message(fields)
        except UnreadableError as error:
            raise UnreadableError(f"field '{name}', message {place}: {error}") from None


def _message(fields: Mapping[str, Any]) -> Message:
    named = first_of(fields, ROLE_FIELDS)
    if named is None:
        raise UnreadableError("no role")
    calls_tool = named in CALLING_ROLES
    role = ASSISTANT if calls_tool else ROLES.get(str(named).strip().lower())
    if role is None:
        raise UnreadableError(f"unknown role {shorten(named)}")
    content = _content(first_of(fields, TEXT_FIELDS))
    further = {
        key: value
        for key, value in fields.items()
        if key not in OWN_FIELDS and value not in (None, "", [], {})
    }
    if CALLS not in further and isinstance(further.get(OLD_CALL), dict):
        further[CALLS] = [{"type": "function", "function": further.pop(OLD_CALL)}]
    if CALLS in further:
        further[CALLS] = _calls(further[CALLS])
    elif calls_tool and (calls := _written_calls(content)):
        content, further = "", further | {CALLS: calls}
    extra = check_text(as_json(further), "message") if further else None
    is_answer = role == ASSISTANT and bool(content.strip()) and not calls_tool
    return Message(role, content, "", is_answer and not _is_masked(fields), extra)


def _calls(value: Any) -> Any:
    """Calls of tools, also as JSON text."""
    expected = "a list of calls"
    calls = decode_json(value, CALLS, expected) if isinstance(value, str) else value
    if not is_messages(calls):
        raise UnreadableError(f"field '{CALLS}' is {kind_of(calls)}, not {expected}")
    return calls


def _written_calls(content: str) -> list[dict[str, Any]] | None:
    """The calls that ShareGPT writes as a message's text: an object with a name, or a list."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return None
    return [{"type": "function", "function": call} for call in calls]


def first_of(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these fields that is there and not null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _content(value: Any) -> str:
    """A message's text: as it is, or in parts."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(map(_part, value))
    if isinstance(value, dict) and value.keys() <= {"type", "text"}:
        return _part(value)
    return check_text(as_text(value), "content")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return check_text(part, "content")
    if not isinstance(part, dict):
        raise UnreadableError(f"a part of its content is {kind_of(part)}, not text")
    text, kind = part.get("text"), part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise UnreadableError(f"a part of its content is {shorten(kind)}, and only text is read")
    if not isinstance(text, str):
        raise UnreadableError("a part of its content has no text")
    return check_text(text, "content")


def _is_masked(fields: Mapping[str, Any]) -> bool:
    return any(_is_zero(fields.get(key)) for key in MASKS)


def _is_zero(value: Any) -> bool:
    if value is None or str(value).lower() == "false":
        return value is not None
    try:
        return float(str(value)) == 0
    except ValueError:
        return False
