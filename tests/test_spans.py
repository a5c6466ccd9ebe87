import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from cherry_vllm.config import compose, plain
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import Pair, SpanBuilder
from cherry_vllm.prompts.templates import PromptTemplate, TextTemplate, build_template
from cherry_vllm.schema import DropReason

VOCAB = 49152


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def bos_tokenizer(checkpoint: Path) -> Any:
    """The same tokenizer, made to add a BOS and an EOS as Llama's and T5's do."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    special = [
        (token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")
    ]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=special
    )
    return tokenizer


def template_of(tokenizer: Any, name: str) -> PromptTemplate:
    return build_template(tokenizer, **plain(compose(f"prompt={name}").prompt))


def build(
    tokenizer: Any,
    answer: str,
    *,
    name: str = "alpaca",
    max_length: int = 512,
    instruction: str = "Say hi.",
) -> Pair | DropReason:
    template = template_of(tokenizer, name)
    builder = SpanBuilder(tokenizer, template, max_length=max_length, vocab_size=VOCAB)
    return builder.build([instruction], [""], [answer])[0]


def test_alpaca_prompt_is_the_papers_to_the_letter(tokenizer: Any) -> None:
    prompt = template_of(tokenizer, "alpaca").render("Do {this}", "with }that{")
    assert prompt.text == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {this}\n\n### Input:\nwith }that{\n\n### Response:"
    )
    assert prompt.marker == "### Response:"


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
@pytest.mark.parametrize("input", ["", "some input"])
def test_prompts_end_in_their_marker(tokenizer: Any, name: str, input: str) -> None:
    prompt = template_of(tokenizer, name).render("Say hi.", input)
    assert prompt.marker
    assert prompt.text.endswith(prompt.marker)
    assert "Say hi." in prompt.text
    assert input in prompt.text


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
def test_both_passes_score_the_same_answer_tokens(tokenizer: Any, name: str) -> None:
    answer = "Hello there, friend. " * 40
    for max_length in (90, 512):
        pair = build(tokenizer, answer, name=name, max_length=max_length)
        assert isinstance(pair, Pair)
        conditioned = pair.conditioned.token_ids[pair.conditioned.start :]
        assert conditioned == pair.direct.token_ids[pair.direct.start :]
        assert pair.truncated == (max_length == 90)
        assert len(pair.conditioned.token_ids) == min(max_length, len(pair.conditioned.token_ids))
        if pair.truncated:
            assert len(pair.conditioned.token_ids) == max_length


def test_bos_goes_before_both_passes_and_eos_after_neither(bos_tokenizer: Any) -> None:
    pair = build(bos_tokenizer, "Hello.")
    assert isinstance(pair, Pair)
    bos, eos = bos_tokenizer.bos_token_id, bos_tokenizer.eos_token_id
    for span in (pair.conditioned, pair.direct):
        assert span.token_ids[0] == bos
        assert eos not in span.token_ids
    text = bos_tokenizer.decode(pair.direct.token_ids)
    assert text == "<|im_start|>### Response:Hello."


def test_chat_direct_pass_begins_with_bos_if_the_prompt_does(tokenizer: Any) -> None:
    # SmolLM2's BOS is the very token that opens each of its messages.
    assert template_of(tokenizer, "chat").render("Say hi.", "").marker == "<|im_start|>assistant\n"
    other = copy.deepcopy(tokenizer)
    other.bos_token = "<repo_name>"
    assert template_of(other, "chat").render("a", "").marker == "<|im_start|>assistant\n"
    other.chat_template = "{{ bos_token }}" + other.chat_template
    marker = template_of(other, "chat").render("a", "").marker
    assert marker == "<repo_name><|im_start|>assistant\n"


def test_rows_that_cannot_be_scored_say_why(tokenizer: Any) -> None:
    num_prompt_tokens = len(
        tokenizer.encode(template_of(tokenizer, "alpaca").render("Say hi.", "").text)
    )
    assert build(tokenizer, "Hello.", max_length=num_prompt_tokens) is DropReason.PROMPT_TOO_LONG
    one = build(tokenizer, "Hello.", max_length=num_prompt_tokens + 1)
    assert isinstance(one, Pair)
    assert one.conditioned.num_answer_tokens == one.direct.num_answer_tokens == 1
    template = template_of(tokenizer, "alpaca")
    small = SpanBuilder(tokenizer, template, max_length=512, vocab_size=100)
    assert small.build(["a"], [""], ["b"]) == [DropReason.OUT_OF_VOCABULARY]


def test_an_answer_merged_into_the_prompt_has_no_token_of_its_own(tokenizer: Any) -> None:
    template = TextTemplate(
        without_input="{instruction} x", with_input="{instruction}{input} x", marker="x"
    )
    builder = SpanBuilder(tokenizer, template, max_length=64, vocab_size=VOCAB)
    merged = tokenizer.encode("a x" + "y", add_special_tokens=False)
    assert len(merged) == len(tokenizer.encode("a x", add_special_tokens=False))
    assert builder.build(["a"], [""], ["y"]) == [DropReason.EMPTY_ANSWER]


def test_an_empty_marker_needs_a_bos(tokenizer: Any, bos_tokenizer: Any) -> None:
    template = TextTemplate(
        without_input="{instruction}", with_input="{instruction}{input}", marker=""
    )
    with pytest.raises(UserError, match="marker"):
        SpanBuilder(tokenizer, template, max_length=64, vocab_size=VOCAB)
    pair = SpanBuilder(bos_tokenizer, template, max_length=64, vocab_size=VOCAB).build(
        ["a:"], [""], [" b"]
    )[0]
    assert isinstance(pair, Pair)
    assert pair.direct.start == 1


@pytest.mark.parametrize(
    ("without_input", "with_input", "fault"),
    [
        ("no field", "{instruction}{input}", "without_input"),
        ("{instruction}", "{instruction}", "with_input"),
        ("{instruction} {", "{instruction}{input}", "without_input"),
        ("{instruction.__class__}", "{instruction}{input}", "without_input"),
    ],
)
def test_templates_are_checked(without_input: str, with_input: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        TextTemplate(without_input=without_input, with_input=with_input, marker="x")


def test_a_tokenizer_without_chat_template_is_refused(checkpoint: Path) -> None:
    bare = AutoTokenizer.from_pretrained(checkpoint)
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        template_of(bare, "chat")
