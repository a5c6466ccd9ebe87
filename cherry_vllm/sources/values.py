"""The values of a record: their kinds, and their texts."""

import json
from typing import Any


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
    """A record is not a conversation."""


class DuplicateKeyError(ValueError):
    """A key occurs twice in an object, with two values; programs disagree on which one counts."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for key, value in pairs:
            if repr(fields[key]) != repr(value):
                raise DuplicateKeyError(f"key '{key}' occurs twice, with two values")
    return fields


def _constant(name: str) -> Number | None:
    """The value of NaN or an infinity: NaN, which pandas writes, is a missing value."""
    return None if name == "NaN" else Number(name)


# Of records, and of the JSON text that their fields may hold.
DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Number, parse_constant=_constant)


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


def as_text(value: Any) -> Any:
    """A number or a truth value as text; any other value as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def check_text(value: Any, name: str) -> str:
    """The value of the field ``name``, if it is text that can be written as UTF-8.

    Raises:
        UnreadableError: it is not.
    """
    if not isinstance(value, str):
        raise UnreadableError(f"field '{name}' is {kind_of(value)}, not text")
    if not is_utf8(value):
        raise UnreadableError(f"field '{name}' contains a lone surrogate, which is not valid text")
    return value


def as_json(value: Any) -> str:
    """The value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def decode_json(text: str, name: str, expected: str) -> Any:
    """What a CSV file or a database holds as JSON text, in a field that should be ``expected``.

    Raises:
        UnreadableError: it is not JSON, or has a key twice.
    """
    try:
        return DECODER.decode(text)
    except DuplicateKeyError as error:
        raise UnreadableError(f"field '{name}': {error}") from None
    except (ValueError, RecursionError):
        raise UnreadableError(f"field '{name}' is text, not {expected}") from None


def is_messages(value: Any) -> bool:
    """Whether a value looks like messages: a list of objects, and not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
