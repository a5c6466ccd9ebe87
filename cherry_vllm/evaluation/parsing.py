"""Parses a judge's reply into its scores; an unclear reply has none, as a guess would be worse.

A reply is a JSON object (structured outputs), or text in the form that the prompt asks for: only
the numbers on the first line. In a text, lines that begin with "Scores:" count as well. If two such
lines disagree, or one contains impossible numbers, the reply has no scores.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_SCORE = 10
MAX_RATING = 5
SCORES = ("assistant_1", "assistant_2")  # the fields of a JSON reply
RATING = ("score",)

# "8 9", "8, 9" and "8.5 7": after a heading on any line, without a heading only on the first.
HEADING = r"(?:(?:final|overall)\s+)?(?:scores?|ratings?)\s*:\s*"
NUMBERS = re.compile(
    rf"(?P<heading>{HEADING})?(?P<numbers>\d+(?:\.\d+)?(?:[\s,]+\d+(?:\.\d+)?)*)", re.I
)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
MARKDOWN = " \t\r*_`#>"  # what may surround a line


class JudgeScores(NamedTuple):
    """The scores of Assistant 1 and Assistant 2, from 0 to 10."""

    assistant_1: float
    assistant_2: float


def parse_scores(reply: str, *, is_whole: bool = True) -> JudgeScores | None:
    """The two scores of a reply; None if it does not state them clearly.

    ``is_whole`` is False for a reply that was cut at the token limit. Then a line that may have
    lost its end does not count, such as "8 1" where the judge meant "8 10".
    """
    found = _parse(reply, SCORES, MAX_SCORE, is_whole=is_whole)
    return None if found is None else JudgeScores(*found)


def parse_rating(reply: str, *, is_whole: bool = True) -> float | None:
    """The rating of a reply, from 0 to 5; None if it does not state one clearly."""
    found = _parse(reply, RATING, MAX_RATING, is_whole=is_whole)
    return None if found is None else found[0]


def parse_aspects(
    reply: str, aspects: Sequence[str], *, is_whole: bool = True
) -> list[float] | None:
    """The ratings of all aspects, from 0 to 10; None if one is missing or has two values.

    A text holds one line per aspect: its name, a colon and the number.
    """
    text = _answer(reply)
    if text.startswith("{"):
        return _read_json(text, aspects, MAX_SCORE, is_whole=is_whole)
    named = [line.partition(":") for line in _lines(text, is_whole=is_whole)]
    values = {(name.strip(MARKDOWN).casefold(), value.strip(MARKDOWN)) for name, _, value in named}
    stated = [[value for name, value in values if name == aspect.casefold()] for aspect in aspects]
    if any(len(found) != 1 or not NUMBER.fullmatch(found[0]) for found in stated):
        return None
    return _checked([float(value) for (value,) in stated], len(aspects), MAX_SCORE)


def _parse(reply: str, fields: Sequence[str], top: float, *, is_whole: bool) -> list[float] | None:
    text = _answer(reply)
    if text.startswith("{"):
        return _read_json(text, fields, top, is_whole=is_whole)
    first, *others = map(NUMBERS.fullmatch, _lines(text, is_whole=is_whole) or [""])
    stated = [_numbers(first)] if first else []
    headed = [_numbers(match) for match in others if match and match["heading"]]
    stated += [numbers for numbers in headed if len(numbers) == len(fields)]
    is_clear = bool(stated) and all(numbers == stated[0] for numbers in stated)
    return _checked(stated[0], len(fields), top) if is_clear else None


def _numbers(match: re.Match[str]) -> list[float]:
    return [float(number) for number in NUMBER.findall(match["numbers"])]


def _answer(reply: str) -> str:
    """The reply without the thoughts before it and without a fence around a JSON object."""
    text = reply.rpartition("</think>")[2].strip()
    inner = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return inner if inner.startswith("{") else text


def _lines(text: str, *, is_whole: bool) -> list[str]:
    """The lines of a text that are not blank, without the mark-up around them."""
    if not is_whole:
        text = text.rpartition("\n")[0]
    lines = text.replace("**", "").split("\n")
    return [line for line in (line.strip(MARKDOWN) for line in lines) if line]


def _read_json(
    text: str, fields: Sequence[str], top: float, *, is_whole: bool
) -> list[float] | None:
    """The fields' numbers; a cut reply counts if only its explanation, the last field, was cut."""
    pairs = _load_pairs(text) if is_whole else _load_pairs(f'{text}"}}')
    if pairs is None and not is_whole and text.endswith('"'):  # cut after the explanation
        pairs = _load_pairs(f"{text}}}")
    if pairs is None:
        return None
    found = dict(pairs)
    if len(found) != len(pairs):  # a field has two values
        return None
    numbers = [found.get(field) for field in fields]
    return _checked(numbers, len(fields), top)


def _load_pairs(text: str) -> list[tuple[str, Any]] | None:
    """The fields of a JSON object and their values, in order; None if it is not one."""
    try:
        pairs = json.loads(text, object_pairs_hook=list, strict=False)
        dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return None
    return list(pairs)


def _checked(numbers: Sequence[Any], count: int, top: float) -> list[float] | None:
    """The numbers as floats if there are ``count`` of them, each from 0 to ``top``."""
    is_possible = len(numbers) == count and all(
        type(number) in (int, float) and 0 <= number <= top for number in numbers
    )
    return [float(number) for number in numbers] if is_possible else None
