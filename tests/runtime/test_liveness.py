"""Slow is not dead: what counts as a sign of life."""

import os
import time

from cherry_vllm.runtime.liveness import MAX_SILENCE, Pulse, cpu_seconds_of
from tests.runtime.conftest import Clock


def test_a_process_that_neither_reports_nor_computes_is_lost_after_the_timeout(
    clock: Clock,
) -> None:
    pulse = Pulse(10)
    clock.now += 5
    assert pulse.seconds_left() == 0
    assert pulse.why_lost(cpu_seconds=70) is None
    clock.now += 4
    assert pulse.why_lost(cpu_seconds=70) is None
    clock.now += 1
    assert pulse.why_lost(cpu_seconds=70) == "gave no sign of life for 10 s"


def test_a_silent_process_that_computes_is_waited_for(clock: Clock) -> None:
    pulse, cpu_seconds = Pulse(10), 0.0
    for _ in range(2 * MAX_SILENCE - 1):
        clock.now += 5
        cpu_seconds += 4
        assert pulse.why_lost(cpu_seconds) is None


def test_a_process_that_spins_without_a_result_is_lost_in_the_end(clock: Clock) -> None:
    pulse, cpu_seconds = Pulse(10), 0.0
    for _ in range(2 * MAX_SILENCE - 1):
        clock.now += 5
        cpu_seconds += 5
        assert pulse.why_lost(cpu_seconds) is None
    clock.now += 5
    assert pulse.why_lost(cpu_seconds + 5) == "computed for 100 s without a result"


def test_a_report_starts_the_wait_again(clock: Clock) -> None:
    pulse = Pulse(10)
    for _ in range(10):
        clock.now += 5
        assert pulse.why_lost(cpu_seconds=0) is None
        pulse.report()


def test_cpu_time_of_a_process_is_counted() -> None:
    before, started = cpu_seconds_of(os.getpid()), time.process_time()
    while time.process_time() - started < 0.1:
        pass
    assert cpu_seconds_of(os.getpid()) - before >= 0.05
    assert cpu_seconds_of(2**22 + 1) == 0  # there is no such process
