"""A text with JSON values, read value by value: memory holds one of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cherry_vllm.errors import UserError
from cherry_vllm.sources.formats import BOM, Encoding
from cherry_vllm.sources.values import is_utf8

MAX_VALUE_CHARS = 64 * 2**20  # a longer value means that the file is broken
READ_CHARS = 2**20
LINE_BREAK = re.compile(r"[\r\n]\s*")
BETWEEN = f" \t\r\n,{BOM}"  # what may stand between two values
GAP = re.compile(f"[{BETWEEN}]*")


class JsonValues:
    """A place in a JSON text that moves on with every value."""

    def __init__(self, stream: IO[str], file: Path, encoding: Encoding) -> None:
        self._stream, self._file, self._encoding = stream, file, encoding
        self._decoder = json.JSONDecoder()
        self._buffer, self._start, self._is_exhausted = "", 0, False
        self.num_rows = 0  # that were taken, for errors

    def peek(self) -> str:
        """The character with which the next value begins; "" at the end."""
        while True:
            found = GAP.match(self._buffer, self._start)
            self._start = found.end() if found else self._start
            if self._start < len(self._buffer) or self._is_exhausted:
                return self._buffer[self._start : self._start + 1]
            self._read_more()

    def take(self, character: str) -> bool:
        """Moves behind ``character`` if it comes next."""
        is_next = self.peek() == character
        self._start += is_next
        return is_next

    def value(self) -> str:
        """The text of the next value, on one line.

        Raises:
            UserError: it is broken.
        """
        self.peek()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._buffer, self._start)
                # A number that ends where the buffer ends may continue after it.
                is_whole = end < len(self._buffer) or self._is_exhausted
            except (ValueError, RecursionError) as error:
                if self._is_exhausted or self._held > MAX_VALUE_CHARS:
                    raise self._fault(error) from None
                is_whole = False
            if is_whole:
                text = self._buffer[self._start : end]
                self._start = end
                # A JSON string contains no raw line break.
                return LINE_BREAK.sub(" ", text)
            self._read_more()

    def items(self) -> Iterator[str]:
        """The texts of the elements of the array that comes next."""
        self.take("[")
        while not self.take("]"):
            yield self.value()

    def each_key(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller takes the value of each."""
        self.take("{")
        while not self.take("}"):
            key = self.value()
            if not (key.startswith('"') and self.take(":")):
                raise self._fault(ValueError(f"no key with a value at {key[:40]}"))
            yield json.loads(key)

    def skip(self) -> None:
        """Moves behind the next value, which may be larger than memory if it is a list."""
        if self.peek() == "[":
            for _ in self.items():
                pass
        elif self.peek() == "{":
            for _ in self.each_key():
                self.value()
        else:
            self.value()

    @property
    def _held(self) -> int:
        return len(self._buffer) - self._start

    def _read_more(self) -> None:
        # Doubling the buffer keeps the work linear in a value's length.
        more = self._stream.read(max(READ_CHARS, self._held))
        self._is_exhausted = not more
        self._buffer, self._start = self._buffer[self._start :] + more, 0

    def _fault(self, error: Exception) -> UserError:
        place = f"{self._file}: row {self.num_rows}"
        if self._held > MAX_VALUE_CHARS:
            return UserError(
                f"{place}: no end within {MAX_VALUE_CHARS:,} characters; if the file is one object "
                "that holds the records, name their list, as in data.field=data"
            )
        if not is_utf8(self._buffer[self._start :]):
            return UserError(f"{place}: {self._encoding.fault}")
        return UserError(
            f"{place}: broken JSON ({error}); repair the file, or convert it to JSON Lines, where "
            "one bad row costs only itself"
        )
