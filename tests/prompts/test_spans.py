import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from cherry_vllm.conversation import ASSISTANT, USER, Conversation, Message, single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.prompts.templates import PromptTemplate, TextTemplate, build_template
from cherry_vllm.schema import DropReason
from tests.prompts.conftest import prompt_named

VOCAB = 2000
SAY_HI = single_turn("Say hi.", "", "Hi.")


def plain_template(text: str, *, marker: str) -> TextTemplate:
    """A template with nothing but the given text and the input."""
    prompt = Prompt(
        without_input=text, with_input=text + "{input}", marker=marker, chat=False, system=None
    )
    return TextTemplate(prompt)


@pytest.fixture(scope="module")
def bos_tokenizer(tokenizer: Any) -> Any:
    """The same tokenizer, made to add a BOS and an EOS as Llama's and T5's do."""
    tokenizer = copy.deepcopy(tokenizer)
    special = [
        (token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")
    ]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=special
    )
    return tokenizer


def template_of(tokenizer: Any, name: str) -> PromptTemplate:
    return build_template(tokenizer, prompt_named(name))


def build(
    tokenizer: Any,
    answer: str,
    *,
    name: str = "alpaca",
    max_length: int = 512,
    instruction: str = "Say hi.",
) -> AnswerSpans | DropReason:
    template = template_of(tokenizer, name)
    builder = SpanBuilder(tokenizer, template, max_length=max_length, vocab_size=VOCAB)
    return builder.build([single_turn(instruction, "", answer)])[0]


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna", "chat"])
def test_both_passes_score_the_same_answer_tokens(tokenizer: Any, name: str) -> None:
    answer = "Hello there, friend. " * 40
    for max_length in (90, 512):
        pair = build(tokenizer, answer, name=name, max_length=max_length)
        assert isinstance(pair, AnswerSpans)
        (conditioned,), (direct,) = pair.conditioned, pair.direct
        assert conditioned.token_ids[conditioned.start :] == direct.token_ids[direct.start :]
        assert pair.truncated == (max_length == 90)
        assert len(conditioned.token_ids) <= max_length
        if pair.truncated:
            assert len(conditioned.token_ids) == max_length


def test_bos_goes_before_both_passes_and_eos_after_neither(bos_tokenizer: Any) -> None:
    pair = build(bos_tokenizer, "Hello.")
    assert isinstance(pair, AnswerSpans)
    bos, eos = bos_tokenizer.bos_token_id, bos_tokenizer.eos_token_id
    for span in (*pair.conditioned, *pair.direct):
        assert span.token_ids[0] == bos
        assert eos not in span.token_ids
    text = bos_tokenizer.decode(pair.direct[0].token_ids)
    assert text == "<|im_start|>### Response:Hello."


def test_rows_that_cannot_be_scored_say_why(tokenizer: Any) -> None:
    num_prompt_tokens = len(
        tokenizer.encode(template_of(tokenizer, "alpaca").render(SAY_HI, 1))
    )
    assert build(tokenizer, "Hello.", max_length=num_prompt_tokens) is DropReason.PROMPT_TOO_LONG
    one = build(tokenizer, "Hello.", max_length=num_prompt_tokens + 1)
    assert isinstance(one, AnswerSpans)
    assert one.conditioned[0].num_answer_tokens == one.direct[0].num_answer_tokens == 1
    template = template_of(tokenizer, "alpaca")
    small = SpanBuilder(tokenizer, template, max_length=512, vocab_size=100)
    assert small.build([single_turn("a", "", "b")]) == [DropReason.OUT_OF_VOCABULARY]


def test_an_answer_merged_into_the_prompt_has_no_token_of_its_own(tokenizer: Any) -> None:
    template = plain_template("{instruction} t", marker="x")
    builder = SpanBuilder(tokenizer, template, max_length=64, vocab_size=VOCAB)
    merged = tokenizer.encode("a t" + "h", add_special_tokens=False)
    assert len(merged) == len(tokenizer.encode("a t", add_special_tokens=False))
    assert builder.build([single_turn("a", "", "h")]) == [DropReason.EMPTY_ANSWER]


def test_an_empty_marker_needs_a_bos(tokenizer: Any, bos_tokenizer: Any) -> None:
    template = plain_template("{instruction}", marker="")
    with pytest.raises(UserError, match="marker"):
        SpanBuilder(tokenizer, template, max_length=64, vocab_size=VOCAB)
    pair = SpanBuilder(bos_tokenizer, template, max_length=64, vocab_size=VOCAB).build(
        [single_turn("a:", "", " b")]
    )[0]
    assert isinstance(pair, AnswerSpans)
    assert pair.direct[0].start == 1
