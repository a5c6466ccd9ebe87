"""Diverse rows in each stratum, among the highest, within the part that it may spend."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.conversation import frame_messages, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, DedupOn, Diversify
from cherry_vllm.selection import diversity
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.columns import Sources
from cherry_vllm.selection.diversity import METHODS, pick_diverse
from cherry_vllm.selection.greedy import to_grid
from cherry_vllm.selection.ranking import choose, select_rows
from tests.made_up import embed, made_up_frame, named, write_embeddings

FRAME = made_up_frame().with_columns(cluster=pl.col("row") * 7 % 5)
TEXTS = [f"Question {row * 3 % 300}?" for row in range(FRAME.height)]
ROWS = pl.DataFrame(
    {
        "row": range(FRAME.height),
        "messages": frame_messages([single_turn(text, "", "A").messages for text in TEXTS]),
    }
).lazy()
VECTORS = embed(range(FRAME.height))
MISSING = [row for row in range(FRAME.height) if row % 10 == 3]  # rows without an embedding


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    has_one = ~pl.col("row").is_in(MISSING)
    held = VECTORS.with_columns(pl.when(has_one).then("embedding").alias("embedding"))
    shards = write_embeddings(tmp_path / "embeddings", held, "rows")
    return Sources(rows=ROWS, num_rows=FRAME.height, find_embeddings=lambda _user: shards)


def picks(rows: list[int], method: Diversify, number: int) -> list[int]:
    """The picks among rows, the highest first, without the code that is tested."""
    vectors = VECTORS["embedding"].to_numpy()[rows]
    return [rows[pick.place] for pick in islice(METHODS[method](to_grid(vectors)), number)]


def best_rows(frame: pl.DataFrame, count: int) -> list[int]:
    usable = frame.filter(pl.col("drop_reason").is_null(), ~pl.col("row").is_in(MISSING))
    ranked = usable.sort(["ifd", "row"], descending=[True, False])
    return ranked["row"].head(count).to_list()


@pytest.mark.parametrize("method", list(Diversify))
@pytest.mark.parametrize("times", [1, 1.5, 3, None])
def test_the_rows_are_picked_among_the_highest(
    sources: Sources, method: Diversify, times: float | None
) -> None:
    found = choose(FRAME, Choice(count=30, diversify=method, candidates=times), sources)
    candidates = best_rows(FRAME, int(30 * times) if times else FRAME.height)
    assert found.rows["row"].to_list() == sorted(picks(candidates, method, 30))
    assert (found.rows["row"].to_list() == sorted(candidates)) == (times == 1)
    assert sources.used.keys() == {"embeddings"}


@pytest.mark.parametrize("method", list(Diversify))
def test_each_stratum_is_filled_by_itself(sources: Sources, method: Diversify) -> None:
    choice = Choice(
        count=40, diversify=method, candidates=2, strata=("cluster",), quota={"1": 1, "3": 3}
    )
    rows = choose(FRAME, choice, sources).rows
    for cluster, part in ((1, 10), (3, 30)):
        mine = FRAME.filter(pl.col("cluster") == cluster)
        expected = picks(best_rows(mine, 2 * part), method, part)
        assert rows.filter(pl.col("cluster") == cluster)["row"].to_list() == sorted(expected)
    assert rows.height == 40


@pytest.mark.parametrize("method", list(Diversify))
def test_a_budget_of_tokens_is_spent_in_the_order_of_the_picks(
    sources: Sources, method: Diversify
) -> None:
    choice = Choice(num_tokens=2500, diversify=method, candidates=3)
    rows = choose(FRAME, choice, sources).rows
    cost = dict(FRAME.select("row", "num_answer_tokens").iter_rows())
    candidates, spent = [], 0
    for row in best_rows(FRAME, FRAME.height):
        spent += cost[row]
        if spent > 7500:
            break
        candidates.append(row)
    expected, left = [], 2500
    for row in picks(candidates, method, len(candidates)):
        left -= cost[row]
        if left < 0:
            break
        expected.append(row)
    assert rows["row"].to_list() == sorted(expected)


def test_rows_without_an_embedding_are_counted_and_never_chosen(sources: Sources) -> None:
    choice = Choice(count=20, diversify=Diversify.k_center, dedup=Dedup.exact)
    found = choose(FRAME, choice, sources)
    usable = set(FRAME.filter(pl.col("drop_reason").is_null())["row"])
    assert found.dropped["no_embedding"] == len(usable & set(MISSING))
    assert not set(found.rows["row"]) & set(MISSING)
    texts = {TEXTS[row] for row in usable - set(MISSING)}
    assert found.steps["dedup"] == len(texts)
    assert found.dropped["duplicate"] == found.steps["with an embedding"] - len(texts)
    order = [*found.steps]
    assert order == ["rows read", "usable", "with an embedding", "dedup", "selected"]


def test_of_duplicates_the_highest_stays(sources: Sources) -> None:
    found = choose(FRAME, Choice(fraction=0.25, dedup=Dedup.exact), sources)
    seen: set[str] = set()
    expected = []
    usable = FRAME.filter(pl.col("drop_reason").is_null())
    for row in usable.sort(["ifd", "row"], descending=[True, False])["row"]:
        if TEXTS[row] not in seen:
            expected.append(row)
        seen.add(TEXTS[row])
    assert found.rows["row"].to_list() == sorted(expected[: usable.height // 4])
    assert found.dropped == {"duplicate": usable.height - len(expected)}


def test_duplicates_go_before_a_group_is_capped(sources: Sources) -> None:
    choice = Choice(dedup=Dedup.exact, group="cluster", max_per_group=3)
    rows = choose(FRAME, choice, sources).rows
    assert rows["cluster"].value_counts()["count"].to_list() == [3] * 5
    assert len({TEXTS[row] for row in rows["row"]}) == 15


@pytest.mark.parametrize(
    "choice",
    [
        named("superfilter_d", count=20),
        named("superfilter_d", count=20, strata=("cluster",), quota="equal", seed=3),
        named("random", count=20, diversify=Diversify.k_center, seed=5),
        named("cherry", count=20, dedup=Dedup.minhash, diversify=Diversify.facility_location),
        named("longest", num_tokens=900, dedup=Dedup.exact, dedup_on=DedupOn.instruction),
    ],
    ids=lambda choice: choice.strategy,
)
def test_neither_the_order_of_lines_nor_batches_matter(
    sources: Sources, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = choose(FRAME, choice, sources).rows["row"].to_list()
    held = sources.embeddings.collect().sample(fraction=1, shuffle=True, seed=1)
    shuffled = write_embeddings(tmp_path / "shuffled", held, "rows")
    lines = ROWS.collect().sample(fraction=1, shuffle=True, seed=2).lazy()
    again = Sources(rows=lines, num_rows=FRAME.height, find_embeddings=lambda _user: shuffled)
    monkeypatch.setattr(diversity, "BATCH_ROWS", 7)
    frame = FRAME.sample(fraction=1, shuffle=True, seed=3)
    assert choose(frame, choice, again).rows["row"].to_list() == expected
    if choice.rank == "random":
        assert choose(frame, named("random", count=20), again).rows["row"].to_list() != expected


def test_superfilter_d_is_its_paper_s_two_steps(sources: Sources) -> None:
    found = choose(FRAME, named("superfilter_d", count=8), sources)
    usable = FRAME.filter(pl.col("drop_reason").is_null(), ~pl.col("row").is_in(MISSING))
    top = usable.sort(["ifd_ppl", "row"], descending=[True, False])["row"].head(80).to_list()
    expected = picks(top, Diversify.facility_location, 8)
    assert found.rows["row"].to_list() == sorted(expected)


def test_a_stratum_whose_candidates_all_fit_is_taken_whole() -> None:
    ranked = pl.DataFrame({"row": range(6), "stratum": [0, 1] * 3, "cost": [1] * 6})
    frame = embed(range(6)).lazy()
    found = pick_diverse(ranked, [3, 0], frame, method=Diversify.k_center, times=None)
    assert found.to_list() == [True, False] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"diversify": Diversify.k_center}, "which only `cherry-vllm select` reads; use that"),
        ({"dedup": Dedup.exact}, "select.dedup=exact: needs the texts of the rows"),
    ],
)
def test_scores_alone_have_neither_texts_nor_embeddings(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        select_rows(FRAME, Choice(count=3, **changes))


def test_too_few_rows_are_told_with_the_steps_that_took_them(sources: Sources) -> None:
    choice = Choice(fraction=1, dedup=Dedup.exact, diversify=Diversify.k_center)
    with pytest.raises(UserError, match="have a finite rank and an embedding without duplicates"):
        choose(FRAME, choice, sources)


def test_equal_numbers_of_a_shard_are_read_as_they_are(sources: Sources) -> None:
    grid = diversity._read(pl.Series("row", [5, 0, 7]), sources.embeddings)
    assert (grid == to_grid(VECTORS["embedding"].to_numpy()[[5, 0, 7]])).all()
    assert grid.dtype == np.float32
