"""Rows to examples: the scorer's token ids, with EOS."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from transformers import AutoTokenizer

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import ASSISTANT, USER, Message, frame_messages
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
from cherry_vllm.schema import REASON
from cherry_vllm.training.batches import NO_LOSS, collate
from cherry_vllm.training.examples import build_training_set
from tests.training.support import PROMPT, frame_of


def builder_of(checkpoint: Path, max_length: int) -> SpanBuilder:
    return open_span_builder(
        read_checkpoint(checkpoint), prompt=PROMPT, max_length=max_length, trust_remote_code=False
    )


def test_an_example_is_the_whole_text_encoded_at_once_and_eos(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    records = [
        {"instruction": "Name a river.", "input": "", "output": "The Danube."},
        {"instruction": "Translate.", "input": "Haus", "output": "house " * 200},
        {"instruction": "Say nothing.", "input": "", "output": " "},
        {"instruction": "long " * 300, "input": "", "output": "x"},
    ]
    builder = open_span_builder(
        read_checkpoint(tiny), prompt=PROMPT, max_length=64, trust_remote_code=False
    )
    eos = tokenizer.eos_token_id
    built = build_training_set(frame_of(records), builder, eos_token_id=eos, max_length=64)
    short, cut = built.examples
    assert short.token_ids == [*tokenizer("Name a river.\nThe Danube.")["input_ids"], eos]
    assert short.start == len(tokenizer("Name a river.\n")["input_ids"])
    whole = tokenizer("Translate.\nHaus\n" + "house " * 200)["input_ids"]
    assert cut.token_ids == whole[:64]
    assert list(built.spans) == [0, 1]
    assert built.dropped == Counter(empty_answer=1, prompt_too_long=1)
    assert (built.num_rows, str(built)) == (4, "2 of 4 rows, 1 empty_answer, 1 prompt_too_long")


def test_an_answer_that_ends_at_the_limit_has_no_eos(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    records = [{"instruction": "Name a river.", "input": "", "output": "The Danube."}]
    length = len(tokenizer("Name a river.\nThe Danube.")["input_ids"])
    for limit, ends_in_eos in [(length, False), (length + 1, True)]:
        builder = open_span_builder(
            read_checkpoint(tiny), prompt=PROMPT, max_length=limit, trust_remote_code=False
        )
        built = build_training_set(frame_of(records), builder, eos_token_id=2, max_length=limit)
        (example,) = built.examples
        assert (example.token_ids[-1] == 2) is ends_in_eos


def talk(*texts: str) -> list[Message]:
    return [
        Message(ASSISTANT, text, is_answer=True) if place % 2 else Message(USER, text)
        for place, text in enumerate(texts)
    ]


def rows_of(*talks: list[Message]) -> pl.DataFrame:
    columns = {"messages": frame_messages(talks), "tools": None, "drop_reason": None}
    return pl.DataFrame(columns, schema_overrides={"drop_reason": REASON})


def learned(tokenizer: Any, example: Span) -> list[str]:
    """The texts that carry loss."""
    return [tokenizer.decode(example.token_ids[start:stop]) for start, stop in example.ranges]


def test_loss_is_on_every_scored_turn_and_the_token_that_ends_it(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    end = tokenizer.eos_token
    prompt = replace(PROMPT, later_turn="{eos}{instruction}\n")
    builder = open_span_builder(
        read_checkpoint(tiny), prompt=prompt, max_length=64, trust_remote_code=False
    )
    said = talk("Name a fruit.", "A cherry.", "And a river?", "The Danube.", "Bye.", "Bye!")
    said[3] = said[3]._replace(is_answer=False)  # masked
    options = {"eos_token_id": tokenizer.eos_token_id, "max_length": 64}
    (example,) = build_training_set(rows_of(said), builder, **options).examples
    assert learned(tokenizer, example) == [f"A cherry.{end}", f"Bye!{end}"]
    batch = collate([example], pad_token_id=0)
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != NO_LOSS]) == f"A cherry.{end}Bye!{end}"


def test_a_template_that_rewrites_past_turns_makes_an_example_of_each(
    tiny: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.content.split('</t>')[-1] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    tokenizer.save_pretrained(folder)
    builder = open_span_builder(
        read_checkpoint(folder),
        prompt=prompt_of(compose("prompt=chat")),
        max_length=99,
        trust_remote_code=False,
    )
    said = talk("Name a fruit.", "<t>Red?</t>A cherry.", "And two?", "Plum, pear.")
    options = {"eos_token_id": tokenizer.eos_token_id, "max_length": 99}
    training_set = build_training_set(rows_of(said), builder, **options)
    end = tokenizer.eos_token
    assert [learned(tokenizer, example) for example in training_set.examples] == [
        [f"<t>Red?</t>A cherry.{end}"],
        [f"Plum, pear.{end}"],
    ]
    assert (training_set.num_rows, len(training_set.spans)) == (1, 1)
