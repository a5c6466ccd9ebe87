"""A record's fields to a conversation, whatever shape they come in."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cherry_vllm.conversation import ASSISTANT, SYSTEM, USER, Message
from cherry_vllm.schema import DropReason
from cherry_vllm.sources.fields import CONVENTIONS, REQUIRED, find_field
from cherry_vllm.sources.messages import ROLE_FIELDS, first_of, read_messages
from cherry_vllm.sources.values import (
    UnreadableError,
    as_json,
    as_text,
    check_text,
    decode_json,
    is_messages,
    is_utf8,
    kind_of,
)

THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thinking_content")
JSON_LIST = "["
TRIPLE = {"instruction", "input", "output"}


class Shaped(NamedTuple):
    """A record's messages, and what is odd about them."""

    messages: list[Message]
    tools: str | None
    reason: DropReason | None  # why no answer can be scored
    numbers: Sequence[str] = ()  # fields with a number where text is expected
    unread: Sequence[str] = ()  # fields whose context has no place beside the messages
    unscored: Sequence[str] = ()  # fields of answers that are not part of their text


def shape_record(fields: Mapping[str, Any], names: Mapping[str, str]) -> Shaped:
    """The conversation of a record; ``names`` are those of its fields (:class:`ChosenFields`), and
    either the messages or both the instruction and the output are among them.

    Raises:
        UnreadableError: a field that is needed is missing, or not what it should be.
    """
    if triple := _triple(fields, names):
        return triple
    numbers: list[str] = []
    unread: list[str] = []
    if "messages" in names:
        name = names["messages"]
        messages = list(read_messages(find_field(fields, name), name, numbers))
        unread += _requests_beside(messages, fields)
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


def _requests_beside(messages: Sequence[Message], fields: Mapping[str, Any]) -> list[str]:
    """Fields for a request that no message repeats, as some data sets do."""
    found = {name: fields.get(name) for name in CONVENTIONS["instruction"]}
    texts = {name: value.strip() for name, value in found.items() if isinstance(value, str)}
    said = "\n".join(message.content for message in messages)
    return [name for name, text in texts.items() if text and text not in said]


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
        yield from _history(find_field(fields, names["history"]), names["history"], numbers)
    instruction, output = (find_field(fields, names[key]) for key in REQUIRED)
    if _are_both_messages(instruction, output):
        instruction, output = (
            decode_json(text, names[key], "a list of messages")
            for key, text in zip(REQUIRED, (instruction, output), strict=True)
        )
    further = _text(fields, names, "input", numbers) or ""
    if is_messages(instruction):
        request = list(_context(read_messages(instruction, names["instruction"], numbers)))
        if further.strip():
            unread.append(names["input"])
    else:
        asked = _text(fields, names, "instruction", numbers)
        if asked is None:
            raise UnreadableError(f"field '{names['instruction']}' is null")
        request = [Message(USER, asked, further)]
    if is_messages(output):
        given = list(read_messages(output, names["output"], numbers))
        start = _end_of_request(request, given)
        yield from _context(given[:start]) if start else request
        yield from given[start:]
    else:
        yield from request
        answer = _text(fields, names, "output", numbers) or ""
        yield Message(ASSISTANT, answer, "", bool(answer.strip()))


def _end_of_request(request: Sequence[Message], given: Sequence[Message]) -> int:
    """Where an output's messages go on after the request; 0 if they do not repeat it.

    Preferences repeat it: ``chosen`` is the whole conversation, often with a system message.
    """
    first = 1 if given[0].role == SYSTEM != request[0].role else 0
    stop = first + len(request)
    asked, repeated = (
        [(said.role, said.content.strip(), said.input.strip()) for said in messages]
        for messages in (request, given[first:stop])
    )
    return stop if asked == repeated else 0


def _are_both_messages(*texts: Any) -> bool:
    """Whether both are JSON text of messages, as in a CSV file."""
    if not all(isinstance(text, str) and text.startswith(JSON_LIST) for text in texts):
        return False
    try:
        opened = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return False
    return all(map(is_messages, opened)) and all(
        first_of(said, ROLE_FIELDS) for value in opened for said in value
    )


def _history(turns: Any, name: str, numbers: list[str]) -> Iterator[Message]:
    """Earlier requests and answers, which are context: pairs of texts, or messages."""
    expected = "a list of pairs of texts, or of messages"
    if isinstance(turns, str):
        turns = decode_json(turns, name, expected) if turns.strip() else None
    if turns is None or turns == []:
        return
    if is_messages(turns):
        yield from _context(read_messages(turns, name, numbers))
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


def _unscored(messages: Sequence[Message]) -> list[str]:
    """The names of thoughts that answers have beside their text."""
    extras = [message.extra for message in messages if message.is_answer and message.extra]
    return [name for extra in extras for name in THOUGHTS if json.loads(extra).get(name)]


def _tools(fields: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """The tools as a JSON list; None if there are none."""
    name = names.get("tools")
    value = find_field(fields, name) if name else None
    if isinstance(value, str) and value.strip():
        value = decode_json(value, str(name), "a list of tools")
    if not value:
        return None
    if not is_messages(value):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not a list of tools as objects")
    return check_text(as_json(value), str(name))


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
        value = as_text(value)
    return check_text(value, name)


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
        message.role == ASSISTANT and not message.content.strip() and not message.calls_tools
        for message in messages
    )
    return DropReason.EMPTY_ANSWER if blank else DropReason.NO_SCORED_TURN
