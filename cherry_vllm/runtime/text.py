"""What people read: safe text, rough times, columns, the first line of an error."""

import logging
import unicodedata
from collections.abc import Sequence

# Control and format characters (escape sequences, bidirectional overrides, zero-width ones), lone
# surrogates, and the separators that end a line or a paragraph.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object) -> str:
    """The text on one line; characters that a terminal acts on become escapes such as ``\\x1b``."""
    return "".join(_escape(char) if _is_unsafe(char) else char for char in str(text))


def _is_unsafe(char: str) -> bool:
    return not char.isprintable() and unicodedata.category(char) in UNSAFE


def _escape(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode()


def rough_time(seconds: float) -> str:
    """A time as people say it: "40 s", "25 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class OneLine(logging.Formatter):
    """Formats a log record as one printable line; a traceback follows unchanged."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = printable(record.message)
        return super().formatMessage(record)
