"""Tells a slow process from a dead one."""

import logging
import os
import time

from cherry_vllm.runtime.signals import descendants, read_stat

log = logging.getLogger(__name__)

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
BUSY_SHARE = 0.01  # of a core: a process that only waits takes less
MAX_SILENCE = 10  # timeouts; then even a process that computes counts as dead: it may loop forever


class Pulse:
    """Tells whether another process is alive: it reports something, or it computes.

    A process that computes may be silent for as long as tokenizing a shard or one forward pass
    takes. So silence alone does not mean that it is dead: its CPU time must also stand still during
    the second half of the timeout.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.report()

    def report(self) -> None:
        """Notes that the process has sent something."""
        self._silent_since = time.monotonic()
        self._begin_half(None)

    def seconds_left(self) -> float:
        """Seconds until :meth:`why_lost` can decide something."""
        return max(0.0, self._end - time.monotonic())

    def why_lost(self, cpu_seconds: float) -> str | None:
        """Why the process counts as dead, or None if it does not.

        ``cpu_seconds`` is the CPU time that it has used so far.
        """
        if self.seconds_left() > 0:
            return None
        if self._cpu_seconds is None:
            self._begin_half(cpu_seconds)
            return None
        if cpu_seconds - self._cpu_seconds < BUSY_SHARE * self._timeout_s / 2:
            return f"gave no sign of life for {self._timeout_s:g} s"
        silent_s = time.monotonic() - self._silent_since
        if silent_s >= MAX_SILENCE * self._timeout_s:
            return f"computed for {silent_s:.0f} s without a result"
        log.info("no result for %.0f s, but the engine is computing: waiting", silent_s)
        self._begin_half(None)
        return None

    def _begin_half(self, cpu_seconds: float | None) -> None:
        self._cpu_seconds, self._end = cpu_seconds, time.monotonic() + self._timeout_s / 2


def cpu_seconds_of(pid: int) -> float:
    """The CPU time that a process and all that it started have used so far."""
    ticks = 0
    for process in (pid, *descendants(pid)):
        stat = read_stat(process)
        # utime and stime of the process itself, cutime and cstime of its children that have ended.
        ticks += sum(map(int, stat[11:15]))
    return ticks / TICKS_PER_S
