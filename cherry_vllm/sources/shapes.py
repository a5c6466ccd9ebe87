"""A record's fields to a conversation, whatever shape they come in."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cherry_vllm.conversation import ASSISTANT, SYSTEM, TOOL, USER, Message
from cherry_vllm.schema import DropReason
from cherry_vllm.sources.columns import find_field

# What data sets call the roles.
ROLE_NAMES = {
    SYSTEM: ("system", "developer"),
    USER: ("user", "human", "prompter", "instruction"),
    ASSISTANT: ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "chatbot", "bot"),
    TOOL: ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
TOOL_CALLS = ("function_call", "tool_call")  # roles of messages that call a tool
CALL_FIELDS = ("tool_calls", "function_call")
ROLE_FIELDS, TEXT_FIELDS = ("role", "from"), ("content", "value", "text")
MASKS = ("weight", "train")  # 0 or false: the message is not learned from
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thinking_content")
OWN_FIELDS = {*ROLE_FIELDS, *TEXT_FIELDS, *MASKS}


class Number(str):
    """A number in JSON, exactly as it was written."""

    __slots__ = ()


class UnreadableError(ValueError):
    """A record is no conversation."""


class Shaped(NamedTuple):
    """A record's messages, and what is odd about them."""

    messages: list[Message]
    tools: str | None
    reason: DropReason | None  # why no answer can be scored
    numbers: Sequence[str] = ()  # fields with a number where text is expected
    thoughts: Sequence[str] = ()  # fields of answers that are not scored


def shape_record(fields: Mapping[str, Any], names: Mapping[str, str]) -> Shaped:
    """The conversation of a record; ``names`` are those of its fields (:meth:`Columns.resolve`),
    and either the messages or both the instruction and the output are among them.

    Raises:
        UnreadableError: a field that is needed is missing, or not what it should be.
    """
    numbers: list[str] = []
    if "messages" in names:
        messages = list(_messages(find_field(fields, names["messages"]), names["messages"]))
    else:
        messages = list(_from_fields(fields, names, numbers))
    system = _text(fields, names, "system", numbers)
    if system and not (messages and messages[0].role == SYSTEM):
        messages.insert(0, Message(SYSTEM, system))
    thoughts = [
        name
        for message in messages
        if message.is_answer and message.extra
        for name in THOUGHTS
        if json.loads(message.extra).get(name)
    ]
    reason = _fault_of(messages)
    if reason is not None:
        messages = [message._replace(is_answer=False) for message in messages]
    return Shaped(messages, _tools(fields, names), reason, numbers, thoughts)


def _from_fields(
    fields: Mapping[str, Any], names: Mapping[str, str], numbers: list[str]
) -> Iterator[Message]:
    """The messages of a record with an instruction and an answer, as text or as messages."""
    yield from _history(fields, names)
    instruction = find_field(fields, names["instruction"])
    if _is_messages(instruction):
        for message in _messages(instruction, names["instruction"]):
            yield message._replace(is_answer=False)
    else:
        asked = _text(fields, names, "instruction", numbers)
        if asked is None:
            raise UnreadableError(f"field '{names['instruction']}' is null")
        yield Message(USER, asked, _text(fields, names, "input", numbers) or "")
    output = find_field(fields, names["output"])
    if _is_messages(output):
        yield from _messages(output, names["output"])
    else:
        yield _answer(_text(fields, names, "output", numbers) or "")


def _history(fields: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Message]:
    """Earlier requests and answers, which are context: pairs of texts, or messages."""
    name = names.get("history", "")
    turns = find_field(fields, name) if name else None
    if not turns:
        return
    if _is_messages(turns):
        for message in _messages(turns, name):
            yield message._replace(is_answer=False)
        return
    for turn in turns if isinstance(turns, list) else [turns]:
        is_pair = isinstance(turn, list) and [type(text) for text in turn] == [str, str]
        if not is_pair:
            raise UnreadableError(f"field '{name}' is not a list of pairs of texts, or of messages")
        yield Message(USER, check_text(turn[0], name))
        yield Message(ASSISTANT, check_text(turn[1], name))


def _messages(value: Any, name: str) -> Iterator[Message]:
    if value is None:
        raise UnreadableError(f"field '{name}' is null")
    if isinstance(value, str):
        value = _decode(value, name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not a list of messages")
    for place, fields in enumerate(value):
        try:
            yield _message(fields)
        except UnreadableError as error:
            raise UnreadableError(f"field '{name}', message {place}: {error}") from None


def _decode(text: str, name: str) -> Any:
    """Messages that a CSV file or a database holds as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableError(f"field '{name}' is text, not a list of messages") from None


def _message(fields: Mapping[str, Any]) -> Message:
    named = next((fields[key] for key in ROLE_FIELDS if fields.get(key) is not None), None)
    calls_tool = named in TOOL_CALLS
    role = ASSISTANT if calls_tool else ROLES.get(str(named).strip().lower())
    if role is None:
        raise UnreadableError(f"unknown role {shorten(named)}")
    content = _content(next((fields[key] for key in TEXT_FIELDS if key in fields), None))
    further = {
        key: value
        for key, value in fields.items()
        if key not in OWN_FIELDS and value not in (None, "", [], {})
    }
    extra = json.dumps(further, ensure_ascii=False) if further else None
    is_answer = role == ASSISTANT and bool(content.strip()) and not calls_tool
    return Message(role, content, "", is_answer and not _is_masked(fields), extra)


def _content(value: Any) -> str:
    """A message's text: as it is, or in parts."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(map(_part, value))
    if isinstance(value, dict):
        return _part(value)
    return check_text(_as_text(value), "content")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return check_text(part, "content")
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        raise UnreadableError(f"a part is {shorten(kind)}, and only text is read")
    return check_text(text, "content")


def _is_masked(fields: Mapping[str, Any]) -> bool:
    for key in MASKS:
        value = fields.get(key)
        if value is not None and str(value).lower() in ("0", "0.0", "false"):
            return True
    return False


def _answer(text: str) -> Message:
    return Message(ASSISTANT, text, "", bool(text.strip()))


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _tools(fields: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """The tools as a JSON list; None if there are none."""
    value = find_field(fields, names["tools"]) if "tools" in names else None
    if isinstance(value, str) and value.strip():
        value = _decode(value, names["tools"])
    if not value:
        return None
    if not isinstance(value, list):
        raise UnreadableError(f"field '{names['tools']}' is {kind_of(value)}, not a list of tools")
    return json.dumps(value, ensure_ascii=False)


def _text(
    fields: Mapping[str, Any], names: Mapping[str, str], key: str, numbers: list[str]
) -> str | None:
    """A field as text; None if it is missing or null. ``numbers`` collects names of numbers."""
    if key not in names:
        return None
    name = names[key]
    value = find_field(fields, name)
    if isinstance(value, bool | int | float | Number):
        numbers.append(name)
        value = _as_text(value)
    if value is None or isinstance(value, str):
        return None if value is None else check_text(value, name)
    raise UnreadableError(f"field '{name}' is {kind_of(value)}, not text")


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def check_text(value: Any, name: str) -> str:
    """The value, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not text")
    if not is_utf8(value):
        raise UnreadableError(
            f"field '{name}' contains a lone surrogate, which is not valid text"
        )
    return str(value)


def _fault_of(messages: Sequence[Message]) -> DropReason | None:
    """Why no answer of these messages can be scored, if so."""
    spoken = [message for message in messages if message.role != SYSTEM]
    roles = [message.role for message in spoken]
    if roles[:1] == [ASSISTANT] or (ASSISTANT, ASSISTANT) in zip(roles, roles[1:], strict=False):
        return DropReason.BROKEN_TURNS
    if any(message.is_answer for message in messages):
        return None
    blank = any(
        message.role == ASSISTANT and not message.content.strip() and not message.extra
        for message in messages
    )
    return DropReason.EMPTY_ANSWER if blank else DropReason.NO_SCORED_TURN


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if not isinstance(value, str) else "text")


def shorten(value: Any) -> str:
    """A value from the data for a message: printable, and not long."""
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
