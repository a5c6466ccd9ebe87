"""`judge=aspects`: two sides of a scored run, rated aspect by aspect."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.aspects import SIDES, show, summarize, take_sides
from cherry_vllm.evaluation.parsing import parse_aspects
from cherry_vllm.selection.extremes import mark_sides
from tests.judge_server import Fault, JudgeServer, completion
from tests.test_exports import run_dir  # noqa: F401 - a scored run
from tests.test_judge_cli import run_judge, server  # noqa: F401 - a fixture
from tests.test_selection import SEVEN, distinct, scores_of

NAMES = list(compose("judge=aspects").judge.aspects)
SIX = ["Scope", "Complexity", "Clarity", "Depth", "Simplicity", "Knowledge Required"]


def test_the_aspects_are_those_of_the_paper() -> None:
    assert NAMES == SIX


@pytest.mark.parametrize(
    "reply",
    [
        "Scope: 3\nDepth: 8.5",
        "**Scope**: 3\n**Depth:** 8.5/10",
        "- Scope: 3 - it is narrow.\n- Depth: 8.5, since 2 steps are needed.",
        "1. Scope: 3\n2. Depth: 8.5",
        "Here are my ratings:\n\nscope = 3\ndepth score: 8.5 out of 10",
        "| Scope | 3 |\n| Depth | 8.5 |",
        "<think>\nScope: 9\n</think>\nScope: 3\nDepth: 8.5",
        "Depth: 8.5\nScope: 3\nSo Scope: 3",
    ],
)
def test_a_rating_stands_behind_its_name(reply: str) -> None:
    assert parse_aspects(reply, ["Scope", "Depth"]) == [3, 8.5]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Scope: 3",
        "Scope: 3\nDepth:",
        "Scope: 3\nDepth: high",
        "Scope: 3\nDepth: 11",
        "Scope: 3\nScope: 4\nDepth: 8",
        "Scope: 3\nDepth: 8 steps",
        "Scope: 3\nThe Depth: 8",
        "3\n8",
    ],
)
def test_a_guess_is_no_rating(reply: str) -> None:
    assert parse_aspects(reply, ["Scope", "Depth"]) is None


def test_the_last_line_of_a_cut_reply_may_be_half_a_number() -> None:
    assert parse_aspects("Scope: 3\nDepth: 1", ["Scope", "Depth"], is_whole=False) is None


@pytest.mark.parametrize(
    ("fraction", "count", "top", "least"),
    [(0.4, None, [4, 1], [5, 0]), (0.05, 1, [4], [0]), (0.5, None, [4, 1], [5, 0])],
)
def test_the_sides_are_the_usable_rows_with_the_highest_and_the_lowest_ifd(
    fraction: float, count: int | None, top: list[int], least: list[int]
) -> None:
    sides = take_sides(SEVEN, fraction=fraction, count=count)
    assert sides.filter(side="top")["row"].to_list() == top
    assert sides.filter(side="least")["row"].to_list() == least


def test_no_row_is_on_both_sides_and_a_fraction_is_exact() -> None:
    sides = take_sides(scores_of([0.5] * 100), fraction=0.5, count=None)
    assert sorted(sides["row"]) == list(range(100))
    assert take_sides(distinct(100), fraction=0.07, count=None).height == 14


@pytest.mark.parametrize("fraction", [0.07, 0.29, 0.5])
def test_judge_and_report_count_the_rows_of_a_side_alike(fraction: float) -> None:
    judged = take_sides(distinct(100), fraction=fraction, count=None)
    shown = mark_sides(distinct(100), fraction=fraction).filter(pl.col("side") != "others")
    assert judged["row"].to_list() == shown["row"].to_list()
    assert judged.height == 2 * round(100 * fraction)


@pytest.mark.parametrize(
    ("fraction", "count", "words"),
    [
        (0.1, None, "judge.fraction=0.1: 0 rows"),
        (0.6, None, "judge.fraction=0.6: give"),
        (None, None, "judge.fraction=None: give"),
        (0.1, 3, "judge.count=3: 3 rows on either side, of 5"),
        (0.1, 0, "judge.count=0"),
    ],
)
def test_empty_and_overlapping_sides_are_refused(
    fraction: float | None, count: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        take_sides(SEVEN, fraction=fraction, count=count)


COMMAND = ("judge=aspects", "judge.model=m", "judge.count=3", "judge.max_tries=1")


def answered(ratings: Callable[[int], str]) -> Callable[[str, int], Fault]:
    """A server that gives the nth distinct prompt the nth reply."""
    seen: list[str] = []

    def script(user: str, _index: int) -> Fault:
        seen.extend({user} - set(seen))
        return Fault(body=completion(ratings(seen.index(user))))

    return script


def test_every_row_of_both_sides_ends_rated_or_says_why_not(
    server: JudgeServer,  # noqa: F811
    run_dir: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = (*COMMAND, f"scores_dir={run_dir}", "judge.concurrency=1")
    lines = "\n".join(f"{name}: {{}}" for name in SIX)
    reply = answered(lambda index: "I rate it well." if index == 1 else lines.format(*[index] * 6))
    server.script = lambda user, index: (
        Fault(500) if len(server.received) == 3 else reply(user, index)
    )
    run_judge(tmp_path, *command)
    ratings = pl.read_parquet(tmp_path / "aspects.parquet")
    scores = pl.read_parquet(run_dir / "scores.parquet").drop_nulls("ifd")
    ranked = scores.filter(pl.col("drop_reason").is_null()).sort("ifd", "row")
    assert set(ratings.filter(side="top")["row"]) == set(ranked.tail(3)["row"])
    assert set(ratings.filter(side="least")["row"]) == set(ranked.head(3)["row"])
    assert ratings["reason"].to_list() == [None, "unparsed", "failed", None, None, None]
    assert ratings["Scope"].to_list() == [0, None, None, 2, 3, 4]
    sides = json.loads((tmp_path / "aspects.json").read_text())["sides"]
    for side in SIDES:
        counts = sides[side]
        parts = counts["rated"] + counts["unparsed"] + counts["failed"]
        assert counts["rows"] == parts == 3
    assert sides["top"]["means"] == dict.fromkeys(SIX, 0)
    assert sides["least"]["means"] == dict.fromkeys(SIX, 3)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Knowledge", "Required", "0.00", "3.00", "-3.00"] in shown
    assert ["failed", "1", "0"] in shown
    assert (tmp_path / "aspects.png").read_bytes().startswith(b"\x89PNG")
    # The instruction is shown, the answer is not, and a second run asks only what failed.
    users = {request.user for request in server.received}
    assert all("Knowledge Required: how much" in user for user in users)
    num_received = len(server.received)
    server.script = answered(lambda _index: lines.format(*[9] * 6))
    run_judge(tmp_path, *command)
    assert len(server.received) == num_received + 1
    assert pl.read_parquet(tmp_path / "aspects.parquet")["Scope"][2] == 9


def test_a_side_without_a_rating_has_no_mean() -> None:
    columns = {"row": [0, 1], "side": list(SIDES), "reason": [None, "failed"], "Scope": [4.0, None]}
    summary = summarize(pl.DataFrame(columns), ["Scope"])
    assert summary["least"]["means"] == {"Scope": None}
    assert show(summary).splitlines()[-1].split() == ["Scope", "4.00", "-", "-"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["scores.parquet", "cherry-vllm score"]),
        (["judge.first=a.jsonl"], ["judge=aspects", "scored run"]),
        (["judge.model=null"], ["judge.model"]),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_mistake_costs_one_line(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        run_judge(tmp_path, *COMMAND, *overrides)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("server")
def test_a_prompt_without_the_aspects_is_refused(tmp_path: Path, run_dir: Path) -> None:  # noqa: F811
    changed = ("judge.prompt.user='Rate {question}.'", f"scores_dir={run_dir}")
    with pytest.raises(UserError, match=r"judge\.prompt\.user: must hold"):
        run_judge(tmp_path, *COMMAND, *changed)
