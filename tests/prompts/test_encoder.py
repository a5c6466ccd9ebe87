"""A text that is far too long is cut before it is encoded, and its first tokens stay the same."""

import base64
import random
import time
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cherry_vllm.conversation import single_turn
from cherry_vllm.prompts import encoder
from cherry_vllm.prompts.encoder import MARGIN_TOKENS, Encoder
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.prompts.templates import build_template
from cherry_vllm.schema import DropReason
from tests.prompts.conftest import prompt_named

FastTokenizer: Any = PreTrainedTokenizerFast
UNKNOWN = "<unk>"
GENERATOR = random.Random(0)
BLOB = base64.b64encode(GENERATOR.randbytes(15_000)).decode()
LONG_TEXTS = {
    "base64": BLOB,
    "one letter": "a" * 20_000,
    "odd number of one letter": "a" * 19_999,
    "two letters": "ab" * 10_001,
    "blanks": " " * 20_000 + "x",
    "line breaks": "\n" * 20_000,
    "words": "Name three colours of the sky. " * 700,
    "not in the vocabulary": "\u4e16\u754c" * 10_000,
    "emoji": "\U0001f469\u200d\U0001f467" * 2_000,
    "special tokens": "<|im_start|>" * 2_000,
    "digits": "".join(GENERATOR.choices("0123456789", k=20_000)),
    "anything": "".join(chr(GENERATOR.randrange(0x20, 0xD000)) for _ in range(20_000)),
}


def unigram() -> Any:
    """Of equal pieces, so that the first may depend on how many letters there are in all."""
    pieces = [(UNKNOWN, -20.0), *(("a" * count, -1.0) for count in range(1, 9)), ("b", -1.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    return FastTokenizer(tokenizer_object=core, unk_token=UNKNOWN)


def word_piece() -> Any:
    """Words of more than 100 letters are one unknown token, however long."""
    vocabulary = {UNKNOWN: 0, "a": 1, "##a": 2, "Name": 3, "the": 4, "sky": 5}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return FastTokenizer(tokenizer_object=core, unk_token=UNKNOWN)


def no_words(tokenizer: Any) -> Any:
    """As Llama 2's: no pre-tokenizer, so the whole text is one word to BPE."""
    core = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    core.normalizer = normalizers.NFKC()
    return FastTokenizer(tokenizer_object=core)


@pytest.fixture(scope="module", params=["byte-level", "one word", "unigram", "wordpiece"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    builders = {"unigram": unigram, "wordpiece": word_piece}
    if request.param in builders:
        return builders[request.param]()
    return tokenizer if request.param == "byte-level" else no_words(tokenizer)


@pytest.mark.parametrize("name", LONG_TEXTS)
@pytest.mark.parametrize("num_tokens", [1, 100])
def test_the_first_tokens_are_those_of_the_whole_text(
    any_tokenizer: Any, name: str, num_tokens: int
) -> None:
    text = LONG_TEXTS[name]
    whole = any_tokenizer(text, add_special_tokens=False)["input_ids"]
    (head,) = Encoder(any_tokenizer, adds_special_tokens=False).encode([text], num_tokens)
    assert head[: num_tokens + 1] == whole[: num_tokens + 1]
    assert (len(head) > num_tokens) == (len(whole) > num_tokens)


def test_texts_of_ordinary_length_are_encoded_as_they_are(tokenizer: Any) -> None:
    texts = ["", "a", BLOB[:5_000], "Name three colours. " * 300]
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert Encoder(tokenizer, adds_special_tokens=False).encode(texts, 32) == whole


def test_cut_and_whole_texts_keep_their_order(tokenizer: Any) -> None:
    texts = [BLOB, "short", BLOB[::-1], ""]
    heads = Encoder(tokenizer, adds_special_tokens=False).encode(texts, 10)
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [ids[:11] for ids in heads] == [ids[:11] for ids in whole]
    assert len(heads[0]) < len(whole[0])


def test_spans_of_long_rows_are_those_of_the_uncut_text(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = build_template(tokenizer, prompt_named("wizardlm"))
    builder = SpanBuilder(tokenizer, template, max_length=40, vocab_size=len(tokenizer))
    texts = [LONG_TEXTS[name] for name in ("base64", "odd number of one letter", "anything")]
    rows = [single_turn(question, "", text) for text in texts for question in ("Why?", text)]
    cut = builder.build(rows)
    monkeypatch.setattr(encoder, "CHARS_PER_TOKEN", 10**9)
    assert cut == builder.build(rows)
    assert {type(item) for item in cut} == {AnswerSpans, DropReason}


def test_a_row_of_20_megabytes_takes_no_time(tokenizer: Any) -> None:
    blob = BLOB * 1_000
    template = build_template(tokenizer, prompt_named("alpaca"))
    builder = SpanBuilder(tokenizer, template, max_length=256, vocab_size=len(tokenizer))
    started = time.perf_counter()
    answered, asked = builder.build(
        [single_turn("Why?", "", blob), single_turn("Why?", blob, "So.")]
    )
    assert time.perf_counter() - started < 5
    assert isinstance(answered, AnswerSpans)
    assert answered.truncated
    assert len(answered.conditioned[0].token_ids) == 256
    assert asked is DropReason.PROMPT_TOO_LONG


@pytest.mark.parametrize("name", ["base64", "one letter", "digits", "anything", "special tokens"])
def test_the_margin_is_far_wider_than_what_a_cut_changes(tokenizer: Any, name: str) -> None:
    text = LONG_TEXTS[name][:4_000]
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for limit in range(3_000, 3_010):
        head = tokenizer(text[:limit], add_special_tokens=False)["input_ids"]
        pairs = enumerate(zip(head, whole, strict=False))
        same = next((place for place, (one, other) in pairs if one != other), len(head))
        assert len(head) - same < MARGIN_TOKENS / 4
