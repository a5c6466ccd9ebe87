"""A shard of conversations through a made-up model: which numbers end where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import ASSISTANT, USER, Message, single_turn
from cherry_vllm.engines import Span
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.prompts.templates import build_template
from cherry_vllm.schema import LOGPROBS
from cherry_vllm.scoring.ifd import aggregate_logprobs
from cherry_vllm.scoring.shard import count_passes, score_shard, sum_shard
from tests.made_up import rows_of

SHIPPED = Path(__file__).parents[1] / "data" / "rows.jsonl"
GOLDEN = Path(__file__).parents[1] / "data" / "golden_scores.json"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHIPPED.parent / "tokenizer")


def noise(before: int, token: int, place: int) -> float:
    return -((before * 31 + token * 7 + place) % 997 + 1) / 100


def model(spans: list[Span], on_scored: Any) -> list[Any]:
    """Log-probs that depend on a token, the one before it and its place."""
    found = []
    for span in spans:
        ids = span.token_ids
        places = [place for start, stop in span.ranges for place in range(start, stop)]
        found.append(np.array([noise(ids[p - 1], ids[p], p) for p in places], np.float32))
        on_scored(1)
    return found


def builder_of(tokenizer: Any, prompt: str) -> SpanBuilder:
    template = build_template(tokenizer, prompt_of(compose(f"prompt={prompt}")))
    return SpanBuilder(tokenizer, template, max_length=96, vocab_size=len(tokenizer))


@pytest.mark.parametrize("prompt", ["alpaca", "wizardlm", "vicuna", "chat"])
def test_scores_of_one_turn_are_those_of_the_first_release_to_the_last_bit(
    tokenizer: Any, prompt: str
) -> None:
    # Made by the code of cb55cc2, from the same rows, tokenizer and log-probs.
    golden = json.loads(GOLDEN.read_text())[prompt]
    records = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    rows = rows_of(
        *(
            list(single_turn(fields["instruction"], fields.get("input") or "", fields["output"])[0])
            for fields in records
        )
    )
    shard = score_shard(rows, lambda _: None, builder=builder_of(tokenizer, prompt), model=model)
    scores = aggregate_logprobs(shard.lazy()).collect()
    values = ["conditioned_score", "direct_score", "ifd", "ifd_ppl"]
    found = [
        [
            line["num_answer_tokens"],
            *(None if line[name] is None else line[name].hex() for name in values),
            line["truncated"],
            line["drop_reason"],
        ]
        for line in scores.iter_rows(named=True)
    ]
    assert found == golden
    for turns, ifd in scores.select("turn_ifd", "ifd").iter_rows():
        assert turns == (None if ifd is None else [ifd])


def test_each_turn_has_the_log_probs_of_its_own_ranges(tokenizer: Any) -> None:
    talk = [
        Message(USER, "Hi."),
        Message(ASSISTANT, "Hello there.", "", is_answer=True),
        Message(USER, "Bye."),
        Message(ASSISTANT, "See you.", "", is_answer=True),
    ]
    rows = rows_of(list(single_turn("Name a fruit.", "", "A cherry.")[0]), talk)
    builder = builder_of(tokenizer, "chat")
    done: list[int] = []
    shard = score_shard(rows, done.append, builder=builder, model=model)
    assert shard.schema == pl.Schema(LOGPROBS)
    assert sum(done) == 4  # two passes a row, however many spans
    found = shard.row(1, named=True)
    (pair,) = builder.build([single_turn("", "", "")._replace(messages=tuple(talk))])
    assert not isinstance(pair, str)
    (conditioned,) = pair.conditioned
    expected = [
        [noise(conditioned.token_ids[p - 1], conditioned.token_ids[p], p) for p in range(*places)]
        for places in conditioned.ranges
    ]
    for turn, values in zip(found["conditioned_logprobs"], expected, strict=True):
        np.testing.assert_allclose(turn, values, rtol=1e-6)
    for turn, span in zip(found["direct_logprobs"], pair.direct, strict=True):
        np.testing.assert_allclose(turn, model([span], lambda _: None)[0])
    sums = sum_shard(rows, lambda _: None, builder=builder, model=model)
    assert sums["num_answer_tokens"].to_list() == [
        [len(turn) for turn in turns] for turns in shard["conditioned_logprobs"].to_list()
    ]


def test_passes_are_counted_evenly_over_the_spans() -> None:
    told: list[int] = []
    on_spans = count_passes(told.append, num_spans=7, num_passes=4)
    for count in (1, 1, 3, 0, 2):
        on_spans(count)
    assert sum(told) == 4
    assert told == [0, 1, 1, 0, 2]
