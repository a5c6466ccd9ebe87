import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from cherry_vllm.conversation import (
    ASSISTANT,
    USER,
    Conversation,
    Message,
    choose_answers,
    single_turn,
)
from cherry_vllm.engines import Span
from cherry_vllm.errors import UserError
from cherry_vllm.options import Turns
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
    num_prompt_tokens = len(tokenizer.encode(template_of(tokenizer, "alpaca").render(SAY_HI, 1)))
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


# --- conversations -----------------------------------------------------------------------------


def talk(*texts: str) -> Conversation:
    """Requests and answers in turn."""
    return Conversation(
        tuple(
            Message(ASSISTANT, text, "", is_answer=True) if place % 2 else Message(USER, text)
            for place, text in enumerate(texts)
        )
    )


TALK = talk("Name a fruit.", "A cherry.", "And two more?", "Plum, pear.", "Thanks.", "Gladly!")


def spans_of(
    tokenizer: Any, conversation: Conversation, *, name: str = "chat", max_length: int = 512
) -> AnswerSpans:
    template = template_of(tokenizer, name)
    builder = SpanBuilder(tokenizer, template, max_length=max_length, vocab_size=len(tokenizer))
    (built,) = builder.build([conversation])
    assert isinstance(built, AnswerSpans)
    return built


@pytest.mark.parametrize("name", ["chat", "vicuna"])
def test_a_conversation_is_one_sequence_with_a_range_per_answer(tokenizer: Any, name: str) -> None:
    pair, template = spans_of(tokenizer, TALK, name=name), template_of(tokenizer, name)
    (conditioned,) = pair.conditioned
    assert not pair.truncated
    for place, (start, stop), direct in zip(
        (1, 3, 5), conditioned.ranges, pair.direct, strict=True
    ):
        answer = TALK.messages[place].content
        assert tokenizer.decode(conditioned.token_ids[start:stop]) == answer
        before = template.render(TALK, place)
        assert conditioned.token_ids[:stop] == tokenizer.encode(before + answer)
        assert start == len(tokenizer.encode(before))
        assert direct == Span.from_start(
            tokenizer.encode(template.marker + answer), len(tokenizer.encode(template.marker))
        )
    # The tokens computed: those of the conversation, and each answer again behind its marker.
    marker = len(tokenizer.encode(template.marker))
    num_answer_tokens = conditioned.num_answer_tokens
    assert sum(len(span.token_ids) for span in pair.direct) == num_answer_tokens + 3 * marker


def test_only_chosen_answers_are_scored(tokenizer: Any) -> None:
    messages = tuple(choose_answers(TALK.messages, Turns.last))
    last = spans_of(tokenizer, Conversation(messages))
    everything = spans_of(tokenizer, TALK)
    assert last.conditioned[0].token_ids == everything.conditioned[0].token_ids
    assert last.conditioned[0].ranges == everything.conditioned[0].ranges[-1:]
    assert last.direct == everything.direct[-1:]
    first = spans_of(tokenizer, Conversation(tuple(choose_answers(TALK.messages, Turns.first))))
    assert first.conditioned[0].ranges == everything.conditioned[0].ranges[:1]
    assert len(first.conditioned[0].token_ids) == first.conditioned[0].ranges[0][1]


def test_a_template_that_rewrites_past_turns_gets_a_sequence_per_turn(
    chat_tokenizer: Callable[[str], Any],
) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"
    )
    thought = "<think>Red?</think>A cherry."
    pair = spans_of(tokenizer, talk("Name a fruit.", thought, "And two more?", "Plum, pear."))
    first, second = pair.conditioned
    texts = [
        tokenizer.decode(span.token_ids[start:stop])
        for span in (first, second)
        for start, stop in span.ranges
    ]
    assert texts == [thought, "Plum, pear."]
    assert "<think>" in tokenizer.decode(first.token_ids)
    assert "<think>" not in tokenizer.decode(second.token_ids)


def test_an_answer_whose_end_merges_with_what_follows_gets_a_sequence_of_its_own(
    chat_tokenizer: Callable[[str], Any],
) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (  # no special token ends an answer
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %} A:{% endif %}{% endfor %}"
    )
    prompt = replace(prompt_named("chat"), marker="A:")
    builder = SpanBuilder(
        tokenizer, build_template(tokenizer, prompt), max_length=99, vocab_size=len(tokenizer)
    )
    (built,) = builder.build([talk("q", " som", "ething", " x")])
    assert isinstance(built, AnswerSpans)
    assert len(built.conditioned) == 2
    (start, stop), ids = built.conditioned[0].ranges[0], built.conditioned[0].token_ids
    assert tokenizer.decode(ids[start:stop]) == " som"


@pytest.mark.parametrize("name", ["chat", "vicuna"])
def test_a_conversation_is_cut_on_the_right(tokenizer: Any, name: str) -> None:
    whole = spans_of(tokenizer, TALK, name=name)
    (span,) = whole.conditioned
    for max_length in range(span.ranges[0][0] + 1, len(span.token_ids) + 2):
        cut = spans_of(tokenizer, TALK, name=name, max_length=max_length)
        kept = [(start, min(stop, max_length)) for start, stop in span.ranges if start < max_length]
        assert cut.conditioned == [Span(span.token_ids[: kept[-1][1]], tuple(kept))]
        lengths = [direct.num_answer_tokens for direct in cut.direct]
        assert lengths == [stop - start for start, stop in kept]
        assert cut.truncated == (max_length < len(span.token_ids))
    template = template_of(tokenizer, name)
    builder = SpanBuilder(
        tokenizer, template, max_length=span.ranges[0][0], vocab_size=len(tokenizer)
    )
    assert builder.build([TALK]) == [DropReason.PROMPT_TOO_LONG]


def test_a_prompt_is_what_precedes_the_first_answer(tokenizer: Any) -> None:
    template = template_of(tokenizer, "chat")
    builder = SpanBuilder(tokenizer, template, max_length=99, vocab_size=len(tokenizer))
    asked = Conversation(TALK.messages[:3])
    alone = Conversation((Message(USER, "Name a fruit."),))
    expected = tokenizer.encode(template.render(TALK, 1))
    assert builder.encode_prompts([TALK, asked, alone]) == [expected] * 3


def test_a_conversation_that_the_template_refuses_is_dropped(tokenizer: Any) -> None:
    builder = SpanBuilder(
        tokenizer, template_of(tokenizer, "alpaca"), max_length=99, vocab_size=len(tokenizer)
    )
    (kept, refused) = builder.build([talk("Name a fruit.", "A cherry."), TALK])
    assert isinstance(kept, AnswerSpans)
    assert refused is DropReason.TEMPLATE_REFUSED
    assert builder.encode_prompts([TALK]) != [DropReason.TEMPLATE_REFUSED]  # its first turn fits


def test_a_refused_prompt_is_a_reason_and_no_text(tokenizer: Any) -> None:
    builder = SpanBuilder(
        tokenizer, template_of(tokenizer, "alpaca"), max_length=99, vocab_size=len(tokenizer)
    )
    asked = Conversation((*TALK.messages[:2], Message(USER, "And?")))
    masked = Conversation(tuple(said._replace(is_answer=False) for said in asked.messages))
    assert builder.encode_prompts([masked]) == [DropReason.TEMPLATE_REFUSED]


def test_nothing_is_scored_that_nothing_precedes(tokenizer: Any) -> None:
    builder = SpanBuilder(
        tokenizer, plain_template("{instruction}", marker="x"), max_length=64, vocab_size=VOCAB
    )
    rows = [single_turn("", "", "b"), single_turn("a", "", " b")]
    empty, sound = builder.build(rows)
    assert empty is DropReason.PROMPT_TOO_SHORT
    assert isinstance(sound, AnswerSpans)
    assert builder.encode_prompts(rows)[0] is DropReason.PROMPT_TOO_SHORT


def test_turns_beyond_the_cut_are_not_even_rendered(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = template_of(tokenizer, "vicuna")
    rendered: list[int] = []
    render = template.render

    def count(conversation: Conversation, place: int) -> str:
        rendered.append(place)
        return render(conversation, place)

    monkeypatch.setattr(template, "render", count)
    builder = SpanBuilder(tokenizer, template, max_length=99, vocab_size=len(tokenizer))
    (built,) = builder.build([talk(*["Say something."] * 2_000)])
    assert isinstance(built, AnswerSpans)
    assert built.truncated
    assert len(rendered) < 20


def test_every_turn_within_the_cut_is_scored(tokenizer: Any) -> None:
    pair = spans_of(tokenizer, talk(*["So?", "Yes."] * 40), max_length=2_000)
    assert sum(len(span.ranges) for span in pair.conditioned) == len(pair.direct) == 40
    assert not pair.truncated
