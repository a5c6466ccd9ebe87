"""A disk on which a process ends, or another one acts, at a chosen moment."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink")


class Killed(BaseException):
    """Stands for `kill -9`: from here on the disk does not change."""


@contextmanager
def freezing_after(changes: int) -> Iterator[None]:
    """Lets so many changes to the disk through; then raises, and lets no other one through.

    What ``finally`` would tidy up stays, as after a real `kill -9`.
    """
    left = changes

    def guard(function: Callable[..., Any], *, writes: Callable[..., bool]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if writes(*arguments, **keywords):
                if left <= 0:
                    raise Killed
                left -= 1
            return function(*arguments, **keywords)

        return guarded

    def always(*_arguments: Any, **_keywords: Any) -> bool:
        return True

    def opens_to_write(_file: Any, mode: str = "r", *_rest: Any, **_keywords: Any) -> bool:
        return any(letter in mode for letter in "wax")

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, guard(getattr(os, name), writes=always))
        patch.setattr(io, "open", guard(io.open, writes=opens_to_write))
        yield


@contextmanager
def at_opening(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Calls ``act`` once, just before a file is opened for the ``number``-th time from now."""
    real, met = io.open, 0

    def opening(*arguments: Any, **keywords: Any) -> Any:
        nonlocal met
        met += 1
        if met == number + 1:
            act()
        return real(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opening)
        yield
