"""What the results say together, and the table that shows it."""

import json
from pathlib import Path

import pytest

from bench.comparison.clock import MEASURE, TRAIN, Clock, show_time
from bench.comparison.entries import BASE, Budget, Entry, plan
from bench.comparison.picture import draw_differences
from bench.comparison.results import Result, find_overlaps, frame_rows, summarize
from bench.comparison.table import show_table, to_json, write_markdown
from cherry_vllm.errors import UserError
from cherry_vllm.figures.figure import save_png

TOKENS = {"held-out": [2, 4], "other": [1, 3]}
ENTRIES = plan(["cherry"], [Budget.ROWS], ["cherry"])


def result(name: str, seed: int | None, loss: float, rows: str = "0-3") -> Result:
    """A model whose loss is the same for each token."""
    nll = {held: [loss * count for count in counts] for held, counts in TOKENS.items()}
    return Result(name, "", seed, rows, 4, 40, nll)


def test_random_rows_of_each_budget_come_first_and_nothing_twice() -> None:
    entries = plan(["cherry", "random", "longest:tokens"], [Budget.ROWS], [])
    names = ["random", "random by tokens", "cherry", "longest by tokens"]
    assert [entry.name for entry in entries] == names
    with pytest.raises(UserError, match=r"--strategies cherry:epochs: give cherry:rows or"):
        plan(["cherry:epochs"], [Budget.ROWS], [])
    for names in (["base"], ["pre-experienced"], ["mine:tokens", "mine-by-tokens:rows"]):
        with pytest.raises(UserError, match=r"--strategies .*: another model is called .*; give"):
            plan(names, [Budget.ROWS], [])


def test_differences_are_to_random_rows_of_the_same_seeds() -> None:
    results = [result(BASE, None, 3), result("random", 0, 2), result("random", 1, 2.5)]
    results += [result("cherry", 1, 2.25), result("cherry", 2, 9)]  # seed 2 has no random rows yet
    base, random, cherry = summarize(results, ENTRIES, TOKENS)
    assert base.losses["other"].difference is random.losses["other"].difference is None
    assert random.losses["held-out"].by_seed == [2, 2.5]
    assert cherry.seeds == [1, 2]
    difference = cherry.losses["held-out"].difference
    assert difference == pytest.approx((-0.25, -0.25, -0.25))
    assert cherry.losses["held-out"].mean == pytest.approx(5.625)


def test_the_two_choices_of_a_strategy_overlap() -> None:
    twin = Entry("cherry", Budget.ROWS, by_base=True).name
    results = [result("cherry", 0, 2, "0-3"), result(twin, 0, 2, "2-5"), result("random", 0, 2)]
    (overlap,) = find_overlaps(results, ENTRIES)
    assert (overlap.num_rows, overlap.num_shared) == (4, 2)
    assert overlap.jaccard == pytest.approx(1 / 3)


def test_the_same_numbers_are_in_the_table_the_page_the_picture_and_the_files(
    tmp_path: Path,
) -> None:
    results = [result(BASE, None, 3), result("random", 0, 2), result("cherry", 0, 1.5)]
    lines = summarize(results, ENTRIES, TOKENS)
    shown = show_table(lines).splitlines()
    assert len(set(map(len, shown))) == 1
    assert shown[3].split()[:6] == ["cherry", "1", "4", "40", "1.5000", "-0.5000"]
    assert "| cherry | 1 | 4 | 40 | 1.5000 | -0.5000 (-0.5000 to -0.5000) |" in write_markdown(
        lines, ["a note"]
    )
    models = json.loads(json.dumps(to_json(lines, [])))["models"]
    assert models[2]["losses"]["other"]["difference"]["value"] == pytest.approx(-0.5)
    rows = frame_rows(results, TOKENS)
    assert rows.height == 3 * 4
    assert rows["nll"].sum() == pytest.approx((3 + 2 + 1.5) * 10)
    figures = draw_differences(lines)
    save_png(tmp_path / "picture.png", *figures)
    assert [figure.title for figure in figures] == [
        "Loss on the held-out rows",
        "Loss on the other rows",
    ]
    assert draw_differences(lines[:1]) == []


def test_the_time_left_is_known_from_the_same_kind_of_work_or_guessed(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock.json")
    assert show_time(clock.estimate({TRAIN: 10})) == "unknown"
    clock.record(MEASURE, 100, 50)
    assert clock.estimate({TRAIN: 100, MEASURE: 10}) == pytest.approx(150 + 5)
    clock.record(TRAIN, 10, 60)
    assert Clock(tmp_path / "clock.json").estimate({TRAIN: 100}) == pytest.approx(600)
    assert [show_time(s) for s in (10, 3000, 7500)] == ["1 min", "50 min", "2 h 05 min"]
