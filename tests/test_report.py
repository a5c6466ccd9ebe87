from typing import Any

import polars as pl

from cherry_vllm.commands.summary import show_extremes, summarize
from cherry_vllm.schema import SCORES


def scores_of(*ifds: float | None, reason: str | None = None) -> pl.DataFrame:
    """Scores with these IFDs over a direct score of 2; a row without one fell to ``reason``."""
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "num_answer_tokens": None if ifd is None else 3,
            "conditioned_score": None if ifd is None else 2 * ifd,
            "direct_score": None if ifd is None else 2.0,
            "ifd": ifd,
            "ifd_ppl": ifd,
            "truncated": None if ifd is None else False,
            "drop_reason": reason if ifd is None else ("ifd_above_one" if ifd > 1 else None),
        }
        for row, ifd in enumerate(ifds)
    ]
    return pl.DataFrame(rows, schema=SCORES)


def test_the_summary_counts_every_row_once() -> None:
    lines = summarize(scores_of(0.2, 0.4, 0.6, 1.5, None, reason="malformed"), 2).splitlines()
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


def test_extremes_are_the_highest_and_lowest_usable_rows_in_order() -> None:
    rows = pl.DataFrame(
        {
            "row": range(5),
            "instruction": [f"question {n}" for n in range(5)],
            "input": ["", "", "\nmore", "", ""],
            "answer": ["a " * 200, "b", "c\nd", "e", "f"],
        }
    )
    shown = show_extremes(scores_of(0.5, 0.9, 0.1, 2.0, 0.7), rows.lazy(), 2).splitlines()
    assert [line.split(":")[0].split() for line in shown if "row" in line] == [
        ["0.900", "row", "1"],
        ["0.700", "row", "4"],
        ["0.100", "row", "2"],
        ["0.500", "row", "0"],
    ]
    assert "question 2 more" in shown[6]
    assert max(len(line) for line in shown) < 130
