"""Duplicates of higher rows, against slow statements of the rules."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.conversation import ASSISTANT, SYSTEM, USER, Message, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, DedupOn
from cherry_vllm.selection import duplicates
from cherry_vllm.selection.duplicates import drop_duplicates, runs_of
from tests.made_up import rows_of


def asked(*instructions: str) -> pl.LazyFrame:
    talks = (single_turn(text, "", str(row)).messages for row, text in enumerate(instructions))
    return rows_of(*talks).lazy()


def kept(
    rows: pl.LazyFrame,
    order: Sequence[int] | None = None,
    *,
    dedup: str = "exact",
    on: str = "instruction",
    threshold: float = 0.7,
) -> list[int]:
    ranked = pl.DataFrame({"row": order or range(rows.collect().height)})
    found = drop_duplicates(ranked, rows, Dedup(dedup), DedupOn(on), threshold)
    return found["row"].to_list()


BOTH = pytest.mark.parametrize("dedup", ["exact", "minhash"])


@BOTH
def test_the_highest_of_equal_rows_stays(dedup: str) -> None:
    rows = asked("a", "b", "a", "b", "c", "a")
    assert kept(rows, dedup=dedup) == [0, 1, 4]
    assert kept(rows, [5, 4, 3, 2, 1, 0], dedup=dedup) == [5, 4, 3]
    assert kept(rows, [3, 0, 5], dedup=dedup) == [3, 0]


@BOTH
@pytest.mark.parametrize(
    "text",
    ["name a fruit", "  Name\n a\t FRUIT ", "name a fruit\u3000", "NAME\u00a0A FRUIT"],
)
def test_case_and_spaces_make_no_difference(dedup: str, text: str) -> None:
    assert kept(asked("Name a fruit", text), dedup=dedup) == [0]


@BOTH
def test_one_character_may_be_written_in_two_ways(dedup: str) -> None:
    assert kept(asked("caf\u00e9 stra\u00dfe", "cafe\u0301 STRASSE"), dedup=dedup) == [0]


@BOTH
def test_a_row_without_a_text_is_no_duplicate(dedup: str) -> None:
    assert kept(asked("", " ", "", "x"), dedup=dedup) == [0, 1, 2, 3]


def test_only_exact_sees_punctuation() -> None:
    rows = asked("Name a fruit!", "Name a fruit?", "?!", "?!", "?!!")
    assert kept(rows) == [0, 1, 2, 4]
    assert kept(rows, dedup="minhash") == [0, 2, 3, 4]


def said(*turns: str, system: str = "", **more: Any) -> list[Message]:
    """A conversation in which every second message is an answer."""
    talk = [Message(SYSTEM, system)] if system else []
    for place, text in enumerate(turns):
        is_answer = place % 2 == 1
        talk.append(Message(ASSISTANT if is_answer else USER, text, is_answer=is_answer, **more))
    return talk


@BOTH
def test_an_instruction_is_all_that_precedes_the_last_answer_but_system_messages(
    dedup: str,
) -> None:
    rows = rows_of(
        said("Q", "A", "R", "B"),
        said("Q", "A", "R", "C", system="Be brief."),
        said("Q", "other", "R", "B"),
        said("R", "B", system="Be brief."),
        list(single_turn("Q", "A R", "D").messages),
    ).lazy()
    assert kept(rows, dedup=dedup) == [0, 2, 3]


@BOTH
def test_an_answer_is_every_answer_that_is_scored(dedup: str) -> None:
    unscored = [message._replace(is_answer=False) for message in said("Q", "A")]
    rows = rows_of(
        said("Q", "A", "R", "B"),
        said("S", "A", "T", "B"),
        said("Q", "B", "R", "B"),
        said("x", "B"),
        [*unscored, *said("R", "B")],
        said("Q", "", extra='{"tool_calls": [1]}'),
        said("Q", "", extra='{"tool_calls": [2]}'),
    ).lazy()
    assert kept(rows, dedup=dedup, on="answer") == [0, 2, 3, 5, 6]


def jaccard(one: str, other: str) -> float:
    sets = [
        {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
        for words in (one.split(), other.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def similar_texts(seed: int) -> list[str]:
    """Texts of 40 words; of each there are some with a few other words."""
    source = np.random.default_rng(seed)
    texts = []
    for _ in range(60):
        words = source.integers(0, 5000, 40)
        for changes in (0, 1, 1, 20):
            variant = words.copy()
            variant[source.integers(0, 40, changes)] = source.integers(5000, 9000, changes)
            texts.append(" ".join(f"w{word}" for word in variant))
    return [texts[place] for place in source.permutation(len(texts))]


@pytest.mark.parametrize("seed", range(3))
def test_similar_rows_are_found_as_by_comparing_all_of_them(seed: int) -> None:
    texts = similar_texts(seed)
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    stays: list[int] = []
    for row in order:  # all pairs are far from the threshold of 0.6
        if all(jaccard(texts[row], texts[other]) < 0.6 for other in stays):
            stays.append(row)
    assert len(texts) / 4 < len(stays) < len(texts) / 1.5
    found = kept(asked(*texts), order, dedup="minhash", threshold=0.6)
    assert len(set(found) ^ set(stays)) <= len(texts) // 50  # estimates, but good ones
    assert found == kept(asked(*texts), order, dedup="minhash", threshold=0.6)


def test_the_order_of_the_rows_read_does_not_matter() -> None:
    texts = similar_texts(9)
    rows, order = asked(*texts), list(range(len(texts)))[::-1]
    shuffled = rows.collect().sample(fraction=1, shuffle=True, seed=3).lazy()
    for dedup in ("exact", "minhash"):
        assert kept(rows, order, dedup=dedup) == kept(shuffled, order, dedup=dedup)


def test_a_duplicate_only_of_a_row_that_went_stays() -> None:
    words = [f"w{place}" for place in range(60)]
    chain = [" ".join(words[start : start + 40]) for start in (0, 5, 10)]
    near, far = jaccard(chain[0], chain[1]), jaccard(chain[0], chain[2])
    assert near > 0.7 > far + 0.1
    assert kept(asked(*chain), dedup="minhash", threshold=0.66) == [0, 2]
    assert kept(asked(*chain), [1, 0, 2], dedup="minhash", threshold=0.66) == [1]


def test_texts_are_read_in_batches_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = similar_texts(4)
    expected = [kept(asked(*texts), dedup=dedup) for dedup in ("exact", "minhash")]
    monkeypatch.setattr(duplicates, "BATCH_ROWS", 7)
    assert [kept(asked(*texts), dedup=dedup) for dedup in ("exact", "minhash")] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one, two: three four", {"one two three", "two three four"}),
        ("one two", {"one two"}),
        ("\u6c34\u679c\u540d\u5b57", {"\u6c34 \u679c \u540d", "\u679c \u540d \u5b57"}),
        ("a \u6c34b", {"a \u6c34 b"}),
    ],
)
def test_the_runs_of_a_text(text: str, expected: set[str]) -> None:
    assert runs_of(text) == expected


def test_without_the_library_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"datasketch is missing; install cherry-vllm\[dedup\]"):
        kept(asked("a"), dedup="minhash")
    assert kept(asked("a")) == [0]
