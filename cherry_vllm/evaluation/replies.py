"""Replies that survive a kill: what was paid for is never asked again."""

import json
import os
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

from cherry_vllm.errors import UserError


class Reply(NamedTuple):
    """What a judge wrote; ``model`` is what the endpoint says answered."""

    text: str
    finish_reason: str | None = None
    model: str | None = None

    @property
    def is_whole(self) -> bool:
        """False if the token limit cut it."""
        return self.finish_reason != "length"


class Replies:
    """Replies by the fingerprint of their request, in a file that only grows.

    Each is a line of JSON, on the disk before :meth:`add` returns. A line that a kill tore off
    is cut away when the file is next opened. One process at a time; threads may share it.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            UserError: a line other than the last is broken.
        """
        self._path = path
        self._lock = Lock()
        self._file = path.open("a+b", buffering=0)
        try:
            self._replies = self._load()
        except BaseException:
            self._file.close()
            raise

    def get(self, request: str) -> Reply | None:
        return self._replies.get(request)

    def add(self, request: str, reply: Reply) -> None:
        """Stores a reply for good."""
        line = json.dumps({"request": request, **reply._asdict()}) + "\n"
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(line.encode())
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)  # the next line must not follow a torn one
                raise
            self._replies[request] = reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _load(self) -> dict[str, Reply]:
        self._file.seek(0)
        content = self._file.read()
        replies: dict[str, Reply] = {}
        start = 0
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                fields = json.loads(line)
                name = fields.pop("request")
                replies[name] = Reply(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                if start + len(line) < len(content) or line.endswith(b"\n"):
                    raise UserError(
                        f"{self._path}: line {number} is no stored reply; delete the line, and "
                        "its request is sent again"
                    ) from None
                self._file.truncate(start)
                break
            start += len(line)
        else:
            if content and not content.endswith(b"\n"):
                self._file.write(b"\n")
        return replies
