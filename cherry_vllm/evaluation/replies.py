"""Replies that survive a kill: a reply that was paid for is never requested again."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cherry_vllm.errors import UserError

log = logging.getLogger(__name__)

OPENING = b'{"request": "'  # of every line


@dataclass(frozen=True)
class Reply:
    """What a judge wrote; ``model`` is the model that answered, as the endpoint names it."""

    text: str
    finish_reason: str | None = None
    model: str | None = None

    @property
    def is_whole(self) -> bool:
        """False if the reply was cut at the token limit."""
        return self.finish_reason != "length"


class Replies:
    """Replies by the name of their request, in a file that only grows.

    Each is a line of JSON, on the disk before :meth:`add` returns. A line that a kill cut short is
    removed when the file is opened again. Only one process at a time may open the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or creates it.

        Raises:
            UserError: a line other than the last is broken.
        """
        self._path = path
        self._num_old = 0  # lines of a version that did not store the endpoint's address
        self._file = path.open("a+b", buffering=0)
        try:
            self._replies = self._load()
        except BaseException:
            self._file.close()
            raise

    def get(self, request: str) -> Reply | None:
        """The reply to a request; None if there is none, or if it is empty."""
        return self._replies.get(request)

    def add(self, request: str, reply: Reply, base_url: str) -> None:
        """Stores a reply for good, with the address that it came from."""
        line = json.dumps({"request": request, "base_url": base_url, **asdict(reply)}) + "\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line.encode())
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:  # a full disk or Ctrl-C: no line may follow an incomplete one
            self._file.truncate(end)
            raise
        self._replies[request] = reply

    def warn_of_old_lines(self) -> None:
        """Warns that replies of an earlier version are not used, if there are any."""
        if self._num_old:
            log.warning(
                "%s: %d replies of an earlier version do not say which endpoint gave them; they "
                "are not used, and their requests are sent again",
                self._path,
                self._num_old,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
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
                has_address = fields.pop("base_url", None) is not None
                reply = Reply(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                is_last = start + len(line) == len(content)
                # A first line must be longer than its opening: "{" may be anyone's file.
                is_torn = is_last and _is_beginning(line) and (start or len(line) > len(OPENING))
                if not is_torn:
                    raise UserError(
                        f"{self._path}: line {number} is not a stored reply; delete the line, then "
                        "its request is sent again"
                    ) from None
                self._file.truncate(start)
                break
            if has_address and reply.text.strip():
                replies[name] = reply
            self._num_old += not has_address
            start += len(line)
        else:
            if content and not content.endswith(b"\n"):
                self._file.write(b"\n")
        return replies


def _is_beginning(line: bytes) -> bool:
    """Whether a line may be one of ours that a kill cut short."""
    return not line.endswith(b"\n") and line[: len(OPENING)] == OPENING[: len(line)]
