"""Each strategy against a slow statement of its rule, and what holds for every choice."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cherry_vllm.cli.keys import list_groups
from cherry_vllm.conversation import frame_messages, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, Diversify, Pool
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.columns import Sources
from cherry_vllm.selection.ranking import choose, select_rows
from tests.made_up import embed, made_up_frame, named, write_embeddings

Line = dict[str, Any]
INDICATORS = ("reward", "understandability", "naturalness", "coherence")


def frame_of(number: int = 400) -> pl.DataFrame:
    """Scores with all columns that a strategy may name."""
    row = pl.col("row")
    return made_up_frame(number).with_columns(
        s_ifd=pl.when(row % 5 > 0).then(row * 13 % 101 / 50),
        cluster=row * 7 % 11,
        instruction=(row * 3 % 150).cast(pl.String),
        **{name: row * step % 17 / 4 for name, step in zip(INDICATORS, (3, 5, 7, 11), strict=True)},
    )


FRAME = frame_of()


def usable(line: Line) -> bool:
    return line["drop_reason"] is None


def scored(line: Line) -> bool:
    return line["ifd"] is not None


def top(lines: list[Line], key: Callable[[Line], Any], count: int) -> list[int]:
    ranked = sorted(lines, key=lambda line: (-key(line), line["row"]))
    return sorted(line["row"] for line in ranked[:count])


def log_loss(line: Line) -> float:
    weights = (-0.0078, 0.4421, -0.3212, -0.1520)
    return float(sum(w * line[name] for w, name in zip(weights, INDICATORS, strict=True)))


def slow(strategy: str, count: int) -> list[int]:
    lines = FRAME.to_dicts()
    if strategy == "superfilter":
        return top([*filter(usable, lines)], lambda line: line["ifd_ppl"], count)
    if strategy == "s_ifd":
        kept = [line for line in lines if usable(line) and line["s_ifd"] is not None]
        return top(kept, lambda line: line["s_ifd"], count)
    if strategy == "instruction_mining":
        return top([*filter(usable, lines)], lambda line: -round(log_loss(line), 9), count)
    if strategy == "mid_ppl":
        kept = sorted(filter(scored, lines), key=lambda line: line["conditioned_score"])
        middle = (len(kept) - 1) / 2
        places = {line["row"]: abs(place - middle) for place, line in enumerate(kept)}
        return top(kept, lambda line: -places[line["row"]], count)
    groups: dict[str, list[Line]] = {}
    for line in filter(scored, lines):
        groups.setdefault(line["instruction"], []).append(line)
    best = [max(group, key=lambda line: -line["conditioned_score"]) for group in groups.values()]
    return top(best, lambda line: -line["conditioned_score"], count)


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize(
    "strategy", ["superfilter", "s_ifd", "mid_ppl", "grape", "instruction_mining"]
)
def test_a_strategy_is_its_slow_statement(strategy: str, count: int) -> None:
    assert select_rows(FRAME, named(strategy, count=count))["row"].to_list() == slow(
        strategy, count
    )


def test_grape_takes_one_answer_of_each_instruction() -> None:
    chosen = select_rows(FRAME, named("grape"))
    pool = FRAME.filter(pl.col("ifd").is_not_null())
    assert chosen["instruction"].n_unique() == chosen.height == pool["instruction"].n_unique()


def test_mid_ppl_leaves_as_many_rows_below_as_above() -> None:
    pool = FRAME.filter(pl.col("ifd").is_not_null())["conditioned_score"].to_list()
    rows = select_rows(FRAME, named("mid_ppl", count=100))
    chosen = rows["conditioned_score"].to_list()
    below = sum(score < min(chosen) for score in pool)
    above = sum(score > max(chosen) for score in pool)
    assert abs(below - above) < 20
    assert "ifd_above_one" in rows["drop_reason"]


def test_length_matched_has_the_lengths_of_the_pool_and_the_highest_ifd_of_each() -> None:
    found = choose(FRAME, named("length_matched", count=100))
    assert found.strata.height == 10
    total = found.pool.height
    for _, pool, selected, _ in found.strata.iter_rows():
        assert abs(selected - pool / total * 100) < 1
    cherry = select_rows(FRAME, named("cherry", count=100))
    for q in (0.25, 0.5, 0.75):
        wanted, matched, plain = (
            float(np.quantile(rows["num_answer_tokens"], q))
            for rows in (found.pool, found.rows, cherry)
        )
        assert abs(matched - wanted) <= max(8, abs(plain - wanted))
    for low, high in (label.split(" to ") for label in found.strata["stratum"]):
        inside = pl.col("num_answer_tokens").is_between(int(low), int(high))
        chosen = found.rows.filter(inside)
        left = found.pool.filter(inside).join(chosen, on="row", how="anti")
        assert min(chosen["ifd"].to_list()) >= max(left["ifd"].to_list())


def test_balanced_takes_equally_many_of_each_cluster() -> None:
    found = choose(FRAME, named("balanced", count=110))
    assert found.strata["selected"].to_list() == [10] * 11
    for cluster in range(11):
        mine = FRAME.filter(pl.col("cluster") == cluster)
        expected = select_rows(mine, Choice(count=10))["row"].to_list()
        assert found.rows.filter(pl.col("cluster") == cluster)["row"].to_list() == expected


# --- what holds for every choice ---------------------------------------------------------------

CHOICES = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(list_groups()["select"]),
        "size": st.one_of(
            st.tuples(st.just("count"), st.integers(1, 120)),
            st.tuples(st.just("fraction"), st.floats(0.02, 0.3)),
            st.tuples(st.just("num_tokens"), st.integers(300, 9000)),
        ),
        "strata": st.lists(
            st.sampled_from(["cluster", "instruction", "num_answer_tokens", "ifd > 0.5"]),
            max_size=2,
            unique=True,
        ),
        "quota": st.sampled_from(["proportional", "equal"]),
        "max_per_group": st.one_of(st.none(), st.integers(1, 3)),
        "dedup": st.sampled_from([None, None, *Dedup]),
        "diversify": st.sampled_from([None, None, *Diversify]),
        "candidates": st.sampled_from([None, 1, 2.5]),
        "where": st.sampled_from([None, "num_answer_tokens > 30", "ifd > 0.2 or cluster = 3"]),
        "pool": st.sampled_from(list(Pool)),
        "seed": st.integers(0, 3),
    }
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Texts, of which some repeat, and embeddings, which some rows lack."""
    said = [single_turn(f"Question {row * 3 % 250}?", "", "A").messages for row in FRAME["row"]]
    rows = pl.DataFrame({"row": FRAME["row"], "messages": frame_messages(said)})
    vectors = embed(range(FRAME.height)).filter(pl.col("row") % 9 > 0)
    embeddings = write_embeddings(tmp_path_factory.mktemp("run"), vectors, "rows")
    return Sources(rows=rows.lazy(), find_embeddings=lambda _user: embeddings)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(given_=CHOICES)
def test_numbers_add_up_caps_hold_and_the_order_of_the_input_does_not_matter(
    sources: Sources, given_: dict[str, Any]
) -> None:
    changes = {**given_, "strata": tuple(given_["strata"])}
    size, amount = changes.pop("size")
    choice = named(changes.pop("strategy"), threshold=None, **{size: amount}, **changes)
    try:
        found = choose(FRAME, choice, sources)
    except UserError:  # fewer rows than asked for
        assert size != "fraction" or choice.max_per_group or choice.where or choice.strata
        return
    rows = found.rows
    assert rows["row"].is_unique().all()
    assert set(rows["row"]) <= set(found.pool["row"])
    if size == "count":
        assert rows.height == amount
    if size == "num_tokens":
        assert rows["num_answer_tokens"].sum() <= amount
    assert found.strata["selected"].sum() == found.steps["selected"] == rows.height
    assert found.strata["pool"].sum() == found.pool.height
    if choice.max_per_group:
        assert max(Counter(rows["instruction"]).values()) <= choice.max_per_group
    if choice.where:
        assert rows.filter(pl.sql_expr(choice.where)).height == rows.height
    shuffled = FRAME.sample(fraction=1, shuffle=True, seed=7)
    assert choose(shuffled, choice, sources).rows["row"].to_list() == rows["row"].to_list()
    if choice.dedup:
        assert (rows["row"] * 3 % 250).is_unique().all()
    if choice.diversify:
        assert (rows["row"] % 9 > 0).all()
    steps = list(found.steps.values())
    assert steps == sorted(steps, reverse=True)


# --- where, rank and threshold -----------------------------------------------------------------


def test_a_condition_and_a_rank_of_ones_own() -> None:
    choice = Choice(
        where="num_answer_tokens between 20 and 90", rank="0.7 * ifd + 0.3 * rating", count=9
    )
    kept = [
        line
        for line in FRAME.to_dicts()
        if usable(line) and 20 <= line["num_answer_tokens"] <= 90 and line["rating"] is not None
    ]
    expected = top(kept, lambda line: 0.7 * line["ifd"] + 0.3 * line["rating"], 9)
    found = choose(FRAME, choice)
    assert found.rows["row"].to_list() == expected
    assert list(found.steps) == ["rows read", "usable", "where", "with a rank", "selected"]
    assert found.steps["with a rank"] == len(kept)


def test_the_fraction_is_of_the_rows_that_meet_the_condition() -> None:
    found = choose(FRAME, Choice(where="ifd > 0.5", fraction=0.1))
    met = FRAME.filter(pl.col("drop_reason").is_null() & (pl.col("ifd") > 0.5)).height
    assert found.rows.height == met // 10


def test_a_row_without_a_finite_rank_is_never_chosen() -> None:
    frame = FRAME.with_columns(x=pl.when(pl.col("row") % 3 > 0).then(pl.col("row") % 3 - 1.0))
    found = choose(frame, Choice(rank="ifd / x", fraction=0.1))
    assert (found.rows["row"] % 3 == 2).all()
    assert found.steps["with a rank"] == found.pool.filter(pl.col("row") % 3 == 2).height
    with pytest.raises(UserError, match=r"asks for \d+ rows, but only \d+ usable rows have a fin"):
        choose(frame, Choice(rank="ifd / x", fraction=1))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"rank": "ifdd"}, r"select\.rank=ifdd: no column ifdd; there are row, num_turns"),
        ({"where": "nosuch > 1"}, r"select\.where=nosuch > 1: no column nosuch; there are row"),
        ({"where": "ifd"}, r"select\.where=ifd: Float64, not true or false"),
        ({"where": "ifd > 99"}, r"select\.where=ifd > 99: met by none of \d+ rows"),
        ({"rank": "instruction"}, r"select\.rank=instruction: String, not a number"),
        ({"rank": "ifd > 0.5"}, r"select\.rank=ifd > 0.5: Boolean, not a number"),
        ({"strata": ("nosuch",)}, r"select\.strata=nosuch: no column nosuch"),
        ({"group": "nosuch", "max_per_group": 1}, r"select\.group=nosuch: no column nosuch"),
        ({"strata": ("cluster",), "quota": {"x": 1}}, r"select\.quota: no stratum x; there are 0"),
        ({"strata": ("cluster",), "quota": {"3": 1}}, r"its strata have only \d+ of 100 rows"),
        ({"quota": {"x": 1}}, r"select\.quota: names strata, but there are none; give select\.st"),
        ({"rank": "ifd / (row - row)"}, "none of 2.. usable rows have a finite rank"),
    ],
)
def test_a_mistake_costs_one_line(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        choose(FRAME, Choice(count=100, **choice))
    assert "\n" not in str(error.value)


def test_a_stratum_that_is_too_small_is_told() -> None:
    found = choose(FRAME, Choice(strata=("cluster = 3 and row < 60",), quota="equal", count=100))
    small = found.strata.filter("is_short")
    assert small["pool"].to_list() == small["selected"].to_list()
    assert small.height == 1
    assert found.rows.height == 100
