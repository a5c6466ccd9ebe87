"""How long the rest will take, from the time that the same kind of work took so far."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cherry_vllm.store.files import read_json, write_json

# Kinds of work, in tokens: forward passes with the held-out rows, scoring, training.
MEASURE, SCORE, TRAIN = "measure", "score", "train"
COSTS = {MEASURE: 1.0, SCORE: 1.0, TRAIN: 3.0}  # of a token, while nothing better is known

Work = Mapping[str, float]  # tokens of each kind


class Clock:
    """The speed of each kind of work, kept in a file so that a resumed run knows it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done: dict[str, Any] = {}  # by kind: tokens and seconds
        with suppress(OSError, ValueError):
            self._done = read_json(file)

    def record(self, kind: str, tokens: float, seconds: float) -> None:
        """Adds tokens of a kind, and the seconds that they took."""
        before = self._done.get(kind, [0, 0])
        self._done[kind] = [before[0] + tokens, before[1] + seconds]
        write_json(self._file, self._done)

    def estimate(self, work: Work) -> float | None:
        """The seconds that work will take; None if nothing was timed yet.

        A kind that was not timed yet is taken to be as fast as the others, by :data:`COSTS`.
        """
        timed = {kind: tokens for kind, (tokens, seconds) in self._done.items() if seconds}
        cost = sum(COSTS[kind] * tokens for kind, tokens in timed.items())
        if not cost:
            return None
        pace = sum(self._done[kind][1] for kind in timed) / cost
        return sum(tokens * self._seconds(kind, pace) for kind, tokens in work.items())

    def _seconds(self, kind: str, pace: float) -> float:
        tokens, seconds = self._done.get(kind, (0, 0))
        return float(seconds / tokens if tokens else pace * COSTS[kind])


def show_time(seconds: float | None) -> str:
    """A rough duration."""
    if seconds is None:
        return "unknown"
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
