"""Finds the cause of what an engine raised, and the line that explains it."""

import re
import traceback
from collections.abc import Iterator

MAX_LINE = 300
# These say that there is a cause, or where to read about it, but not what it is.
EMPTY_LINES = re.compile(
    r"see root cause above|see stack ?trace|validation errors? for|^for further information|://|"
    r"^the above exception",
    re.IGNORECASE,
)
# Mistakes in code, or between a model and an engine: the next row would meet them too.
MEETS_EVERY_ROW = (AttributeError, ImportError, NameError, NotImplementedError, TypeError)
# So says an engine of a model or of a machine that it does not fit.
UNSUPPORTED = re.compile(r"\b(unsupported|not supported|not implemented)\b", re.IGNORECASE)


class EngineError(Exception):
    """The engine raised; the message is the traceback."""

    summary = "failed"
    meets_every_row = False
    is_unsupported = False


def blame_engine(error: Exception) -> EngineError:
    """The error that reports an exception to the driver; it is pickled on the way."""
    cause = find_cause(error)
    blamed = EngineError("".join(traceback.format_exception(error)))
    blamed.summary = ": ".join(filter(None, ("failed", type(cause).__name__, telling_line(cause))))
    blamed.meets_every_row = isinstance(cause, MEETS_EVERY_ROW)
    blamed.is_unsupported = UNSUPPORTED.search(telling_line(cause)) is not None
    return blamed


def find_cause(error: BaseException) -> BaseException:
    """The innermost exception that ``error`` was raised from and that says what happened.

    An exception that was only being handled at the time counts if the later one says nothing.
    """
    found = error
    for cause in _chain(error):
        is_raised_from = found.__cause__ is cause
        if telling_line(cause) and (is_raised_from or not telling_line(found)):
            found = cause
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    while True:
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None or id(inner) in seen:
            return
        yield inner
        seen.add(id(inner))
        error = inner


def telling_line(error: BaseException) -> str:
    """The first line of an exception's message that says what happened; "" if none does."""
    for line in _message(error).splitlines():
        words = line.strip()
        if " " in words and not EMPTY_LINES.search(words):
            return words if len(words) <= MAX_LINE else f"{words[:MAX_LINE]}..."
    return ""


def _message(error: BaseException) -> str:
    # Pydantic's message lists the model's name, a URL and all arguments; its errors say why.
    errors = getattr(error, "errors", None)
    try:
        return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)
    except (TypeError, LookupError):
        return str(error)
