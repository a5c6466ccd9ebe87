"""Text from data can't act on a terminal."""

import logging

import pytest

from cherry_vllm.runtime.text import OneLine, first_line, printable, rough_time


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # C1: an escape sequence in one character
        ("over\rwritten\b\x7f", r"over\rwritten\x08\x7f"),
        ("two\nlines\u2028three\u2029\x85", r"two\nlines\u2028three\u2029\x85"),
        ("evil\u202etxt.exe\u2066", r"evil\u202etxt.exe\u2066"),
        ("zero\u200bwidth\ufeff\u00ad", r"zero\u200bwidth\ufeff\xad"),
        ("hidden\U000e0041", r"hidden\U000e0041"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("NUL\x00", r"NUL\x00"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).encode()


@pytest.mark.parametrize(
    "text", ["Grüße 🌅", "写一个故事", "اكتب قصة", "C:\\new", "a\u00a0b\u3000c", "naïve e\u0301"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_log_line_is_one_printable_line() -> None:
    record = logging.LogRecord("n", logging.WARNING, "f", 1, "%s: %d", ("a\nb\x1b[2J", 3), None)
    assert OneLine("[now] %(message)s").format(record) == r"[now] a\nb\x1b[2J: 3"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (110, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_a_time_is_told_roughly(seconds: float, words: str) -> None:
    assert rough_time(seconds) == words


def test_an_error_without_a_message_is_told_by_its_name() -> None:
    assert first_line(ValueError("\nno such file\nmore")) == "no such file"
    assert first_line(EOFError()) == "EOFError"
