"""Text from data, made safe to print."""

import logging
import unicodedata

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


class OneLine(logging.Formatter):
    """Formats a log record as one printable line; a traceback follows unchanged."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = printable(record.message)
        return super().formatMessage(record)
