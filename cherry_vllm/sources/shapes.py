"""A record's fields to a conversation, whatever shape they come in."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cherry_vllm.conversation import ASSISTANT, SYSTEM, TOOL, USER, Message
from cherry_vllm.schema import DropReason
from cherry_vllm.sources.columns import REQUIRED, find_field

# What data sets call the roles.
ROLE_NAMES = {
    SYSTEM: ("system", "developer"),
    USER: ("user", "human", "prompter", "instruction"),
    ASSISTANT: ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "chatbot", "bot", "ai"),
    TOOL: ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
CALLING_ROLES = ("function_call", "tool_call")  # of messages that call a tool
CALLS = "tool_calls"  # the field with the calls
ROLE_FIELDS, TEXT_FIELDS = ("role", "from"), ("content", "value", "text")
MASKS = ("weight", "train", "loss")  # 0 or false: the message is not learned from
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thinking_content")
TEXT_PARTS = (None, "text", "input_text", "output_text")
JSON_LIST = "["
TRIPLE = {"instruction", "input", "output"}
OWN_FIELDS = {*ROLE_FIELDS, *TEXT_FIELDS, *MASKS}


class Number(float):
    """A number of JSON that is not whole; ``str()`` gives it exactly as it was written."""

    __slots__ = ("_text",)
    _text: str

    def __new__(cls, text: str) -> "Number":
        number = super().__new__(cls, text)
        number._text = text
        return number

    def __str__(self) -> str:
        return self._text


class UnreadableError(ValueError):
    """A record is no conversation."""


class Shaped(NamedTuple):
    """A record's messages, and what is odd about them."""

    messages: list[Message]
    tools: str | None
    reason: DropReason | None  # why no answer can be scored
    numbers: Sequence[str] = ()  # fields with a number where text is expected
    unread: Sequence[str] = ()  # fields whose context has no place beside the messages
    unscored: Sequence[str] = ()  # fields of answers that are not part of their text


def shape_record(fields: Mapping[str, Any], names: Mapping[str, str]) -> Shaped:
    """The conversation of a record; ``names`` are those of its fields (:class:`Chosen`), and
    either the messages or both the instruction and the output are among them.

    Raises:
        UnreadableError: a field that is needed is missing, or not what it should be.
    """
    if triple := _triple(fields, names):
        return triple
    numbers: list[str] = []
    unread: list[str] = []
    if "messages" in names:
        messages = list(_messages(find_field(fields, names["messages"]), names["messages"]))
    else:
        messages = list(_from_fields(fields, names, numbers, unread))
    system = _text(fields, names, "system", numbers)
    if system and not (messages and messages[0].role == SYSTEM):
        messages.insert(0, Message(SYSTEM, system))
    elif system and system != messages[0].content:
        unread.append(names["system"])
    reason = _fault_of(messages)
    if reason is not None:
        messages = [message._replace(is_answer=False) for message in messages]
    return Shaped(messages, _tools(fields, names), reason, numbers, unread, _unscored(messages))


def _triple(fields: Mapping[str, Any], names: Mapping[str, str]) -> Shaped | None:
    """The commonest record, two or three sound texts, which need not take the long way."""
    if not names.keys() <= TRIPLE:
        return None
    asked, answer = fields.get(names["instruction"]), fields.get(names["output"])
    further = fields.get(names["input"]) if "input" in names else ""
    if not (type(asked) is str and type(answer) is str and type(further) is str):
        return None
    are_json = asked.startswith(JSON_LIST) and answer.startswith(JSON_LIST)
    if are_json or not (is_utf8(asked) and is_utf8(answer) and is_utf8(further)):
        return None
    is_answer = bool(answer.strip())
    messages = [Message(USER, asked, further), Message(ASSISTANT, answer, "", is_answer)]
    return Shaped(messages, None, None if is_answer else DropReason.EMPTY_ANSWER)


def _from_fields(
    fields: Mapping[str, Any], names: Mapping[str, str], numbers: list[str], unread: list[str]
) -> Iterator[Message]:
    """The messages of a record with an instruction and an answer, as text or as messages."""
    if "history" in names:
        yield from _history(find_field(fields, names["history"]), names["history"])
    instruction, output = (find_field(fields, names[key]) for key in REQUIRED)
    if (opened := _open_both(instruction, output)) is not None:
        instruction, output = opened
    further = _text(fields, names, "input", numbers) or ""
    if _is_messages(instruction):
        yield from _context(_messages(instruction, names["instruction"]))
        if further.strip():
            unread.append(names["input"])
    else:
        asked = _text(fields, names, "instruction", numbers)
        if asked is None:
            raise UnreadableError(f"field '{names['instruction']}' is null")
        yield Message(USER, asked, further)
    if _is_messages(output):
        yield from _messages(output, names["output"])
    else:
        answer = _text(fields, names, "output", numbers) or ""
        yield Message(ASSISTANT, answer, "", bool(answer.strip()))


def _open_both(instruction: Any, output: Any) -> list[Any] | None:
    """Both as messages, if both are JSON text of messages, as in a CSV file."""
    texts = (instruction, output)
    if not all(isinstance(text, str) and text.startswith(JSON_LIST) for text in texts):
        return None
    try:
        opened = [json.loads(text, parse_float=Number) for text in texts]
    except (ValueError, RecursionError):
        return None
    are_messages = all(
        _is_messages(value) and all(_first(said, ROLE_FIELDS) for said in value) for value in opened
    )
    return opened if are_messages else None


def _history(turns: Any, name: str) -> Iterator[Message]:
    """Earlier requests and answers, which are context: pairs of texts, or messages."""
    expected = "a list of pairs of texts, or of messages"
    if isinstance(turns, str):
        turns = _decode(turns, name, expected) if turns.strip() else None
    if turns is None or turns == []:
        return
    if _is_messages(turns):
        yield from _context(_messages(turns, name))
        return
    if not isinstance(turns, list):
        raise UnreadableError(f"field '{name}' is {kind_of(turns)}, not {expected}")
    for turn in turns:
        if not (isinstance(turn, list) and [type(text) for text in turn] == [str, str]):
            raise UnreadableError(f"field '{name}' is not {expected}")
        yield Message(USER, check_text(turn[0], name))
        yield Message(ASSISTANT, check_text(turn[1], name))


def _context(messages: Iterable[Message]) -> Iterator[Message]:
    return (message._replace(is_answer=False) for message in messages)


def _messages(value: Any, name: str) -> Iterator[Message]:
    if value is None:
        raise UnreadableError(f"field '{name}' is null")
    if isinstance(value, str):
        value = _decode(value, name, "a list of messages")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not a list of messages")
    for place, fields in enumerate(value):
        try:
            yield _message(fields)
        except UnreadableError as error:
            raise UnreadableError(f"field '{name}', message {place}: {error}") from None


def _decode(text: str, name: str, expected: str) -> Any:
    """What a CSV file or a database holds as JSON text."""
    try:
        return json.loads(text, parse_float=Number)
    except (ValueError, RecursionError):
        raise UnreadableError(f"field '{name}' is text, not {expected}") from None


def _message(fields: Mapping[str, Any]) -> Message:
    named = _first(fields, ROLE_FIELDS)
    if named is None:
        raise UnreadableError("no role")
    calls_tool = named in CALLING_ROLES
    role = ASSISTANT if calls_tool else ROLES.get(str(named).strip().lower())
    if role is None:
        raise UnreadableError(f"unknown role {shorten(named)}")
    content = _content(_first(fields, TEXT_FIELDS))
    further = {
        key: value
        for key, value in fields.items()
        if key not in OWN_FIELDS and value not in (None, "", [], {})
    }
    if CALLS in further:
        further[CALLS] = _calls(further[CALLS])
    elif calls_tool and (calls := _written_calls(content)):
        content, further = "", further | {CALLS: calls}
    extra = check_text(_as_json(further), "message") if further else None
    is_answer = role == ASSISTANT and bool(content.strip()) and not calls_tool
    return Message(role, content, "", is_answer and not _is_masked(fields), extra)


def _calls(value: Any) -> Any:
    """Calls of tools, also as JSON text."""
    expected = "a list of calls"
    calls = _decode(value, CALLS, expected) if isinstance(value, str) else value
    if not _is_messages(calls):
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


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these fields that is there and not null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


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
    if not isinstance(part, dict):
        raise UnreadableError(f"a part of its content is {kind_of(part)}, not text")
    text, kind = part.get("text"), part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise UnreadableError(f"a part of its content is {shorten(kind)}, and only text is read")
    if not isinstance(text, str):
        raise UnreadableError("a part of its content has no text")
    return check_text(text, "content")


def _is_masked(fields: Mapping[str, Any]) -> bool:
    for key in MASKS:
        value = fields.get(key)
        if value is not None and str(value).lower() in ("0", "0.0", "false"):
            return True
    return False


def _unscored(messages: Sequence[Message]) -> list[str]:
    """The names of thoughts that answers have beside their text."""
    extras = [message.extra for message in messages if message.is_answer and message.extra]
    return [name for extra in extras for name in THOUGHTS if json.loads(extra).get(name)]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _tools(fields: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """The tools as a JSON list; None if there are none."""
    name = names.get("tools")
    value = find_field(fields, name) if name else None
    if isinstance(value, str) and value.strip():
        value = _decode(value, str(name), "a list of tools")
    if not value:
        return None
    if not _is_messages(value):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not a list of tools as objects")
    return check_text(_as_json(value), str(name))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(
    fields: Mapping[str, Any], names: Mapping[str, str], key: str, numbers: list[str]
) -> str | None:
    """A field as text; None if it is missing or null. ``numbers`` collects names of numbers."""
    name = names.get(key)
    if name is None:
        return None
    value = find_field(fields, name)
    if value is None or (type(value) is str and value.isascii()):
        return value
    if isinstance(value, bool | int | float):
        numbers.append(name)
        value = _as_text(value)
    return check_text(value, name)


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def check_text(value: Any, name: str) -> str:
    """The value, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not text")
    if not is_utf8(value):
        raise UnreadableError(f"field '{name}' contains a lone surrogate, which is not valid text")
    return value


def _fault_of(messages: Sequence[Message]) -> DropReason | None:
    """Why no answer of these messages can be scored, if so."""
    before = ASSISTANT
    for message in messages:
        if message.role == before == ASSISTANT:
            return DropReason.BROKEN_TURNS
        before = before if message.role == SYSTEM else message.role
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
    if text.isascii():  # known without looking at the text
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
