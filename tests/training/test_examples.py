"""Rows to examples: the scorer's token ids, with EOS."""

from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
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
