"""What the terminal shows: counts that add up, and no text that acts on it."""

import polars as pl
import pytest

from cherry_vllm.commands.summary import describe, show_extremes, summarize
from cherry_vllm.conversation import frame_messages, single_turn
from cherry_vllm.selection.sides import label_sides
from tests.made_up import scores


def test_the_summary_counts_every_row_once() -> None:
    lines = summarize(scores(0.2, 0.4, 0.6, 1.5, None, reason="malformed"), 2).splitlines()
    counts = {line[:40].strip(): line[40:].split()[0] for line in lines}
    assert counts == {
        "rows read": "5",
        "scored": "4",
        "of these, answer cut at max_length": "0",
        "dropped: malformed": "1",
        "dropped: ifd_above_one": "1",
        "usable": "3",
        "selected": "2",
        "IFD quartiles of usable rows": "0.300",
    }


def rows_of(*triples: tuple[str, str, str]) -> pl.DataFrame:
    messages = frame_messages([single_turn(*triple).messages for triple in triples])
    return pl.DataFrame({"row": range(len(triples)), "messages": messages})


def test_extremes_are_the_highest_and_lowest_usable_rows_in_order() -> None:
    inputs, answers = ["", "", "\nmore", "", ""], ["a " * 200, "b", "c\nd", "e", "f"]
    asked = [f"question {n}" for n in range(5)]
    rows = rows_of(*zip(asked, inputs, answers, strict=True))
    shown = show_extremes(scores(0.5, 0.9, 0.1, 2.0, 0.7), rows.lazy(), 2).splitlines()
    assert [line.split(":")[0].split() for line in shown if "row" in line] == [
        ["0.900", "row", "1"],
        ["0.700", "row", "4"],
        ["0.100", "row", "2"],
        ["0.500", "row", "0"],
    ]
    assert "question 2 more" in shown[6]
    assert max(len(line) for line in shown) < 130


def test_no_text_of_a_row_acts_on_the_terminal() -> None:
    rows = rows_of(
        ("\x1b[2Jclear", "\x9b31m", "\x1b]0;title\x07"), ("evil\u202etxt", "", "a\u200bb" * 1000)
    )
    shown = show_extremes(scores(0.5, 0.9), rows.lazy(), 1)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert r"row 0: \x1b[2Jclear \x9b31m" in shown
    assert r"-> \x1b]0;title\x07" in shown
    assert describe("title", {"failed": {"\x1b[31m": 1}}).endswith("1")
    assert "\x1b" not in describe("\x1b", {"a": {"\x1b[31m": 1}, "b": "\x1b", "\x1b": 1})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_side_is_shown_as_it_is_counted_elsewhere(count: int) -> None:
    assert (
        label_sides(scores(0.5, 0.5, 0.5, 0.5), count=count).filter(side="top")["row"].to_list()
        == [0, 1][:count]
    )
