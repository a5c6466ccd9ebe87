"""Replies to verdicts and figures; the paper's recorded reviews, where they are at hand."""

import ast
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import Pair, read_pairs
from cherry_vllm.evaluation.parsing import parse_scores
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.verdicts import (
    Judgement,
    Tally,
    bootstrap_interval,
    compare,
    decide,
    tally,
    tally_groups,
)
from tests.conftest import ROOT, SHARED

DATA = ROOT / "tests" / "data"
FIRST, SECOND, REVIEWS = (
    DATA / name for name in ("answers_a.jsonl", "answers_b.jsonl", "reviews.json")
)
# Test set and judge: win, tie, loss of 5% cherry Alpaca against full Alpaca.
RECORDED = {
    "vicuna_wrap_reviews_gpt4": (44, 15, 21),
    "wizardlm_wrap_reviews_gpt4": (102, 54, 62),
    "sinstruct_wrap_reviews_gpt4": (111, 61, 80),
    "vicuna_wrap_reviews_gpt3.5": (16, 58, 6),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Path]:
    files = {name: SHARED / "judge" / f"{name}.json" for name in RECORDED}
    if not all(file.is_file() for file in files.values()):
        pytest.skip("needs the paper's recorded reviews, which are not part of the project")
    return files


def verdicts_of(file: Path) -> pl.DataFrame:
    return decide(read_reviews([file]))


def counts(row: Tally) -> tuple[int, ...]:
    return (row.win, row.tie, row.loss, row.unparsed, row.failed)


def test_verdicts_follow_the_rule_and_a_gap_is_no_draw() -> None:
    verdicts = verdicts_of(REVIEWS)
    assert verdicts["verdict"].to_list() == ["win"] * 2 + ["tie"] * 3 + ["loss", "unparsed"]
    assert verdicts["flips"].to_list() == [False, False, False, True, True, False, None]
    total, *categories = tally_groups(verdicts, seed=0)
    assert (total.testset, *counts(total)) == ("orchard", 2, 3, 1, 1, 0)
    assert (total.flips, total.flips_to_assistant_1) == (2, 1)
    assert total.position_bias == pytest.approx(2 / 6)
    assert total.winning_score == pytest.approx((2 - 1) / 6 + 1)
    assert [row.category for row in categories] == ["clear", "level", "unclear"]
    assert [sum(group) for group in zip(*map(counts, categories), strict=True)] == [2, 3, 1, 1, 0]
    assert (categories[-1].winning_score, categories[-1].interval) == (None, None)


def test_a_request_without_a_reply_is_its_own_count() -> None:
    pair = Pair("t", "1", None, "q", "", "a", "b")
    win, cut = Reply("9 1"), Reply("8 1", finish_reason="length")
    judgements = [Judgement(pair, win, None), Judgement(pair, win, cut), Judgement(pair, None, cut)]
    row = tally(decide(judgements), seed=0)
    assert counts(row) == (0, 0, 0, 1, 2)
    assert row.winning_score is None


def test_the_interval_is_seeded_and_is_that_of_drawing_questions_anew() -> None:
    win, tie, loss = 44, 15, 21
    low, high = bootstrap_interval(win, tie, loss, seed=3)
    assert (low, high) == bootstrap_interval(win, tie, loss, seed=3)
    outcomes = np.repeat([1, 0, -1], [win, tie, loss])
    drawn = np.random.default_rng(0).choice(outcomes, size=(10_000, outcomes.size))
    plain = np.quantile(drawn.mean(axis=1) + 1, (0.025, 0.975))
    assert (low, high) == pytest.approx(tuple(plain), abs=0.02)
    assert bootstrap_interval(5, 0, 0, seed=0) == (2, 2)


def test_agreement_is_the_share_of_equals_and_cohens_kappa() -> None:
    draw = random.Random(0)
    pairs = [Pair("t", str(n), None, f"question {n % 40}", "", "a", "b") for n in range(60)]
    replies = ("9 1", "5 5", "1 9", "no idea")
    frames = [
        decide(
            [Judgement(p, Reply(text), Reply(text[::-1])) for p, text in zip(pairs, t, strict=True)]
        )
        for t in (draw.choices(replies, k=60), draw.choices(replies, k=60))
    ]
    both = [
        (a, b)
        for a, b in zip(*(frame["verdict"] for frame in frames), strict=True)
        if "unparsed" not in (a, b)
    ]
    agreement = compare(*frames)
    assert agreement.questions == len(both) < 60
    assert agreement.equal == pytest.approx(sum(a == b for a, b in both) / len(both))
    assert agreement.kappa == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert compare(frames[0], frames[0])[1:] == (1, 1)
    assert compare(frames[0], frames[1].clear()).equal is None
    level = frames[0].filter(verdict="tie")
    assert compare(level, level)[1:] == (1, None)  # chance alone makes all equal


def test_answers_pair_by_id_in_the_order_of_the_first_file() -> None:
    pairs = read_pairs(FIRST, SECOND)
    assert [pair.id for pair in pairs] == ["1", "2", "m-1", "m-2", "m-3"]
    assert [pair.category for pair in pairs] == ["short", "short", "long", "long", None]
    assert pairs[2].input.startswith("It is")
    assert (pairs[4].first, pairs[4].second) == ("", "Nothing.")


GOOD = '{"id": 1, "question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (GOOD, GOOD.replace("1", "2"), ["second.jsonl", "no answer for 1 of the 1 ids"]),
        (GOOD, GOOD + GOOD.replace("1", "2"), ["first.jsonl", "(2)"]),
        (GOOD, GOOD.replace('"q"', '"r"'), ["second.jsonl", "id 1"]),
        (GOOD + "\n" + GOOD, GOOD, ["first.jsonl", "line 3", "id 1"]),
        (GOOD + "{", GOOD, ["line 2", "broken JSON"]),
        (GOOD + "[]", GOOD, ["line 2", "object"]),
        (GOOD.replace('"a"', "null"), GOOD, ["line 1", "no field 'answer'"]),
        (GOOD.replace('"a"', "3"), GOOD, ["'answer' is int"]),
        (GOOD.replace("1", "true"), GOOD, ["line 1", "'id'"]),
        (GOOD.replace('"a"', '"\\ud800"'), GOOD, ["lone surrogate"]),
        ("\n", GOOD, ["first.jsonl", "no answers"]),
    ],
)
def test_answers_that_do_not_match_are_refused(
    tmp_path: Path, first: str, second: str, words: list[str]
) -> None:
    files = (tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    for file, text in zip(files, (first, second), strict=True):
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_pairs(*files)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["broken JSON"]),
        ("[]", ["'data'"]),
        ('{"data": []}', ["no reviews"]),
        ('{"data": [{"text": "q"}]}', ["record 0", "Answer1"]),
        ('{"data": [3]}', ["record 0", "object"]),
    ],
)
def test_reviews_of_another_format_are_refused(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read_reviews([file])
    assert all(word in str(error.value) for word in words)
    with pytest.raises(UserError, match="the same test set"):
        read_reviews([REVIEWS, REVIEWS])


@pytest.mark.parametrize("name", RECORDED)
def test_the_recorded_reviews_give_the_papers_counts(recorded: dict[str, Path], name: str) -> None:
    total, *categories = tally_groups(verdicts_of(recorded[name]), seed=0)
    assert counts(total) == (*RECORDED[name], 0, 0)
    assert categories == []


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_reply_is_read_as_the_reference_read_it(
    recorded: dict[str, Path], name: str
) -> None:
    """So the reference's narrow parser, which takes a miss for a draw, missed nothing here."""
    for record in json.loads(recorded[name].read_text(encoding="utf-8"))["data"]:
        for kind in ("", "_reverse"):
            reply, scores = (
                record["review" + kind],
                tuple(ast.literal_eval(record["scores" + kind])),
            )
            assert parse_scores(reply) == scores
            head, _, explanation = reply.partition("\n")
            # The prose that follows is full of numbers: only the scores themselves, repeated.
            assert parse_scores(explanation) in (None, scores)
            assert parse_scores(record["Answer1"]) is parse_scores(record["Answer2"]) is None
            one, two = head.split()
            for form in (f"{one}, {two} ", f"{one}/10 {two}/10", f"My view:\n**{one} {two}**"):
                assert parse_scores(f"{form}\n{explanation}") == scores


def test_the_recorded_judges_agree_and_lean_as_far_as_counted_by_hand(
    recorded: dict[str, Path],
) -> None:
    gpt4, gpt35 = (verdicts_of(recorded[f"vicuna_wrap_reviews_gpt{n}"]) for n in ("4", "3.5"))
    agreement = compare(gpt4, gpt35)
    verdicts = [frame["verdict"].to_list() for frame in (gpt4, gpt35)]
    assert agreement.questions == 80
    assert agreement.equal == sum(a == b for a, b in zip(*verdicts, strict=True)) / 80
    assert agreement.kappa == pytest.approx(cohen_kappa_score(*verdicts))
    total = tally(gpt35, seed=0)
    assert (total.flips, total.flips_to_assistant_1) == (58, 0)  # always to Assistant 2


def test_categories_of_the_test_set_add_up(recorded: dict[str, Path], tmp_path: Path) -> None:
    questions = SHARED / "judge" / "vicuna_test_set.jsonl"
    category = {
        line["text"]: line["category"]
        for line in map(json.loads, questions.read_text(encoding="utf-8").splitlines())
    }
    content: Any = json.loads(recorded["vicuna_wrap_reviews_gpt4"].read_text(encoding="utf-8"))
    for record in content["data"]:
        record["category"] = category[record["text"]]
    file = tmp_path / "reviews.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    total, *parts = tally_groups(verdicts_of(file), seed=0)
    assert len(parts) == 9
    assert {row.category: row.questions for row in parts} == Counter(category.values())
    assert tuple(map(sum, zip(*map(counts, parts), strict=True))) == counts(total)
