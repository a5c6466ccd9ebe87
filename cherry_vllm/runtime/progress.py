"""Progress with rate and time left."""

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

BAR_PAUSE_S = 0.5
LINE_PAUSES_S = (10, 20, 40, 60)  # between lines; the last one from then on


def hide_transformers_bars() -> None:
    """Keeps transformers from drawing a bar for every file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class Progress:
    """How far a stage is: a bar on a terminal; in a log file, a line every so often.

    Its clock starts with :meth:`start`, or else with the first step, so that the rate does not
    count the time in which a model is loaded.
    """

    def __init__(
        self, stage: str, *, unit: str = "rows", total: int | None = None, initial: int = 0
    ) -> None:
        self._stage, self._unit, self._total, self._initial = stage, unit, total, initial
        self._bar: tqdm | None = None
        self._is_started, self._num_lines = False, 0
        self._count = initial

    def start(self) -> None:
        """Starts the clock, and shows the bar; only the first call counts."""
        if self._is_started:
            return
        self._is_started, self._started = True, time.monotonic()
        self._last_line = self._started
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=self._stage,
                unit=f" {self._unit}",
                total=self._total,
                initial=self._initial,
                mininterval=BAR_PAUSE_S,
            )

    def update(self, count: int = 1) -> None:
        """Adds ``count`` to what is done."""
        self.reach(self._count + count)

    def reach(self, count: int, note: str = "") -> None:
        """Sets what is done to ``count``, which may be fewer than before; ``note`` follows it."""
        self.start()
        self._count = count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count - self._bar.n)
            return
        pause = LINE_PAUSES_S[min(self._num_lines, len(LINE_PAUSES_S) - 1)]
        if time.monotonic() - self._last_line >= pause:
            self._last_line = time.monotonic()
            self._num_lines += 1
            log.info("%s", self._describe() + (f", {note}" if note else ""))

    def _describe(self) -> str:
        rate = (self._count - self._initial) / (time.monotonic() - self._started)
        whole = f" of {self._total:,}" if self._total else ""
        line = f"{self._stage}: {self._count:,}{whole} {self._unit}, {rate:.3g} {self._unit}/s"
        if self._total and rate > 0:
            left = tqdm.format_interval((self._total - self._count) / rate)
            line += f", {left} left"
        return line

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
