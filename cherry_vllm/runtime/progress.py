"""Progress with rate and time left."""

import sys

from tqdm import tqdm


def hide_transformers_bars() -> None:
    """Keeps transformers from drawing a bar for every file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def progress_bar(stage: str, *, unit: str = " rows", **counts: int) -> tqdm:
    """A bar; in a log file, which has no line to redraw, one line every ten seconds."""
    interval = 0.5 if sys.stderr.isatty() else 10
    return tqdm(desc=stage, unit=unit, mininterval=interval, **counts)
