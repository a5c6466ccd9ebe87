"""Progress: a bar on a terminal, lines elsewhere, and a clock that loading does not run."""

import logging
import re
import sys

import pytest

from cherry_vllm.runtime.progress import Progress
from tests.runtime.conftest import Clock


@pytest.fixture(autouse=True)
def logging_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cherry_vllm")


def test_a_log_file_gets_a_line_every_so_often(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("scoring", total=4000, initial=1000) as shown:
        clock.now += 500  # of loading
        shown.start()
        for _ in range(200):
            clock.now += 1
            shown.update(5)
    assert caplog.messages[0] == "scoring: 1,050 of 4,000 rows, 5 rows/s, 09:50 left"
    # After 10, 20, 40, 60 and 60 seconds more.
    counts = [re.findall(r"[\d,]+", message)[0] for message in caplog.messages]
    assert counts == ["1,050", "1,150", "1,350", "1,650", "1,950"]


def test_without_a_total_nothing_is_said_of_the_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("reading") as shown:
        shown.start()
        clock.now += 10
        shown.reach(25, "half of a file")
    assert caplog.messages == ["reading: 25 rows, 2.5 rows/s, half of a file"]


def test_a_terminal_gets_a_bar_that_starts_with_the_first_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("scoring", total=10, initial=2) as shown:
        assert capsys.readouterr().err == ""
        shown.reach(6)
        shown.reach(4)  # a worker died, and its rows are counted back
        shown.reach(10)
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("scoring: 100%")
    assert "10/10" in last
