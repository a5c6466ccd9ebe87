"""A judge's reply to its two scores, or to none: a guess would be worse than a gap.

Judges are asked for two numbers on the first line, and most comply. What else is read, each as a
whole line: ``8,9``, ``8/10 9/10``, ``**8 9**``, ``Scores: 8 and 9``, and the assistants by name, on
one line or on two. Numbers inside a sentence are never scores.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_SCORE = 10
MAX_RATING = 5
MAX_PREAMBLE_LINES = 4  # a bare pair further down may be anything: a quoted example, a sum

THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
# Emphasis touches a word on one side; a sign of multiplication between spaces does not.
MARKDOWN = re.compile(r"(?<!\s)[*_`]+|[*_`]+(?!\s)|^[\s>#]+|^\s*[-\u2022]\s+")
# \u2013 and \u2014 are dashes, \u2019 is an apostrophe, \u2022 a bullet.
SCORE = r"(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10|\s+out\s+of\s+10)?"
SEPARATOR = r"(?:\s*[,;|&]\s*(?:and\s+)?|\s+(?:(?:and|vs\.?)\s+)?)"
HEADING = r"(?:(?:my|the|final|overall)\s+)*(?:scores?|ratings?)(?:\s+(?:are|is))?\s*:?\s*"
PAIR = rf"[\[(]?\s*{SCORE}{SEPARATOR}{SCORE}\s*[\])]?\s*\.?\s*"
BARE_LINE = re.compile(PAIR, re.IGNORECASE)
HEADED_LINE = re.compile(HEADING + PAIR, re.IGNORECASE)
RATING = r"(\d(?:\.\d+)?)(?:\s*/\s*5|\s+out\s+of\s+5)?\s*\.?\s*"
BARE_RATING = re.compile(RATING, re.IGNORECASE)
HEADED_RATING = re.compile(HEADING + RATING, re.IGNORECASE)
NAMED = (
    r"Assistant\s+{}(?:['\u2019]s)?(?:\s+(?:overall\s+)?(?:score|rating))?\s*[:=(\u2013-]\s*"
    + SCORE
    + r"(?:\s*\))?"
)
NAMED_1, NAMED_2 = (NAMED.replace("{}", number) for number in "12")
LEAD = rf"(?:{HEADING}|\|)?\s*"
# After a named score comes a stop, a dash, the other assistant or nothing: "8 steps" is no score.
END = r"(?=\s*$|\s*[.,:;|](?!\s*\d)|\s+[\u2013\u2014(-](?!\s*\d)|\s+(?:and\s+)?Assistant\s)"
BETWEEN = r"[\s.,;|]*(?:and\s+)?"
ASPECT = r"(?:\|\s*|\d[.)]\s*)?{}(?:\s+(?:score|rating))?\s*[:=|\u2013-]\s*" + SCORE
FIRST_NAMED = re.compile(LEAD + NAMED_1 + END, re.IGNORECASE)
SECOND_NAMED = re.compile(LEAD + NAMED_2 + END, re.IGNORECASE)
BOTH_NAMED = re.compile(LEAD + NAMED_1 + BETWEEN + NAMED_2 + END, re.IGNORECASE)


class Scores(NamedTuple):
    """What Assistant 1 and Assistant 2 got, from 0 to 10."""

    assistant_1: float
    assistant_2: float


def parse_scores(reply: str, *, is_whole: bool = True) -> Scores | None:
    """The two scores of a reply; None where they cannot be told for certain.

    ``is_whole`` is False for a reply that was cut at the token limit: its last line may be the
    "8 1" of an "8 10", and is left out.
    """
    lines = _lines(reply, is_whole=is_whole)
    for line in lines[: MAX_PREAMBLE_LINES + 1]:
        scores = _match(BARE_LINE, line) or _match(HEADED_LINE, line)
        if scores:
            return scores
    return _only(_match(HEADED_LINE, line) for line in lines) or _named_scores(lines)


def parse_rating(reply: str, *, is_whole: bool = True) -> float | None:
    """The one rating of a reply, from 0 to 5; None where it cannot be told for certain.

    A bare number counts on the first line, or on the second below a line that ends in a colon;
    further down it needs a heading such as "Score:".
    """
    lines = _lines(reply, is_whole=is_whole)
    first = lines[1:2] if lines and lines[0].endswith(":") else lines[:1]
    bare = [BARE_RATING.fullmatch(line) for line in first]
    headed = [HEADED_RATING.fullmatch(line) for line in lines]
    found = {float(match[1]) for match in (bare if any(bare) else headed) if match}
    return found.pop() if len(found) == 1 and max(found) <= MAX_RATING else None


def parse_aspects(
    reply: str, aspects: Sequence[str], *, is_whole: bool = True
) -> list[float] | None:
    """The ratings of all aspects, from 0 to 10, each from a line that begins with its name.

    None where one is missing, or has two values.
    """
    lines = _lines(reply, is_whole=is_whole)
    ratings: list[float] = []
    for name in aspects:
        pattern = re.compile(ASPECT.replace("{}", re.escape(name)) + END, re.IGNORECASE)
        found = {float(match[1]) for match in map(pattern.match, lines) if match}
        if len(found) != 1 or max(found) > MAX_SCORE:
            return None
        ratings += found
    return ratings


def _lines(reply: str, *, is_whole: bool) -> list[str]:
    """The lines that say something, without mark-up and without thoughts before the answer."""
    if not is_whole:
        reply = reply.rpartition("\n")[0]
    text = THOUGHT.sub("", reply)
    return [line for line in map(_plain, text.split("\n")) if line]


def _plain(line: str) -> str:
    return MARKDOWN.sub("", line.strip()).strip()


def _match(pattern: re.Pattern[str], line: str) -> Scores | None:
    found = pattern.fullmatch(line)
    return _checked(*found.groups()) if found else None


def _checked(assistant_1: str, assistant_2: str) -> Scores | None:
    scores = Scores(float(assistant_1), float(assistant_2))
    return scores if max(scores) <= MAX_SCORE else None


def _only(found: Iterator[Scores | None]) -> Scores | None:
    """The one value among several that are the same; two verdicts in one reply are none."""
    distinct = {scores for scores in found if scores}
    return distinct.pop() if len(distinct) == 1 else None


def _named_scores(lines: list[str]) -> Scores | None:
    both = [found.groups() for line in lines if (found := BOTH_NAMED.match(line))]
    values = [
        {*(pair[place] for pair in both), *(found[1] for found in map(name.match, lines) if found)}
        for place, name in enumerate((FIRST_NAMED, SECOND_NAMED))
    ]
    if any(len(distinct) != 1 for distinct in values):
        return None
    return _checked(values[0].pop(), values[1].pop())
