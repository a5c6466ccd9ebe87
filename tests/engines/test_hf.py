"""transformers against plain forward passes and against the slow reference."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import (
    ASSISTANT,
    Conversation,
    Message,
    frame_messages,
    single_turn,
)
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.hf import HfEmbedder, HfEngine, load_model
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.prompts.templates import build_template
from cherry_vllm.schema import REASON, DropReason
from cherry_vllm.scoring.ifd import aggregate_logprobs
from cherry_vllm.scoring.shard import score_shard
from tests.engines.models import (
    assert_close,
    assert_plain_pass,
    expected_logprobs,
    make_multimodal,
    make_remote,
    make_spans,
    pick,
)
from tests.reference import conversation_scores, reference_scores

pytestmark = pytest.mark.engine
ModelOf = Callable[[str], Path]
SETTINGS = HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=1024)
UNTRUSTED = {"trust_remote_code": False}


def hf_engine(checkpoint: Path, batch_tokens: int, *, trust_remote_code: bool = False) -> HfEngine:
    return HfEngine(
        replace(SETTINGS, batch_tokens=batch_tokens),
        read_checkpoint(checkpoint),
        max_length=512,
        trust_remote_code=trust_remote_code,
    )


def score_conversations(
    conversations: list[Conversation], builder: SpanBuilder, hf: HfEngine
) -> pl.DataFrame:
    columns = {
        "row": range(len(conversations)),
        "messages": frame_messages([one.messages for one in conversations]),
        "tools": None,
        "drop_reason": None,
    }
    rows = pl.DataFrame(columns, schema_overrides={"row": pl.Int64, "drop_reason": REASON})
    shard = score_shard(rows, ignore, builder=builder, model=hf.logprobs)
    return aggregate_logprobs(shard.lazy()).collect()


def ignore(_count: int) -> None:
    pass


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_log_probs_are_those_of_a_plain_pass_and_batching_changes_nothing(
    architecture: str, model_of: ModelOf
) -> None:
    checkpoint, spans = model_of(architecture), make_spans()
    expected = expected_logprobs(checkpoint, spans)
    for batch_tokens in (1, 1024):
        done: list[int] = []
        found = hf_engine(checkpoint, batch_tokens).logprobs(spans, done.append)
        assert sum(done) == len(spans)
        assert {floats.dtype for floats in found} == {np.dtype(np.float32)}
        assert_close(spans, found, expected)


def test_code_of_its_own_may_return_the_logits_of_all_positions(tmp_path: Path) -> None:
    checkpoint, spans = make_remote(tmp_path), make_spans()
    found = hf_engine(checkpoint, 1024, trust_remote_code=True).logprobs(spans, ignore)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint, trust_remote_code=True).eval()
    for span, floats in zip(spans, found, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([span.token_ids])).logits[0].log_softmax(-1)
        np.testing.assert_allclose(floats, pick(span, logprobs), atol=2e-4)


def test_a_multimodal_model_is_scored_on_text_alone(tmp_path: Path) -> None:
    checkpoint, spans = make_multimodal(tmp_path), make_spans()
    found = hf_engine(checkpoint, 1024).logprobs(spans, ignore)
    assert_close(spans, found, expected_logprobs(checkpoint, spans))
    embedder = HfEmbedder(SETTINGS, read_checkpoint(checkpoint), max_length=9, **UNTRUSTED)
    assert np.isfinite(embedder.embed([[5], [6, 7, 8]], ignore).embeddings).all()


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_one_pass_gives_mean_hidden_states_and_log_probs(
    architecture: str, model_of: ModelOf
) -> None:
    checkpoint, prompts = model_of(architecture), [[5], [6, 7, 8], list(range(3, 200)), [9, 8]]
    embedder = HfEmbedder(SETTINGS, read_checkpoint(checkpoint), max_length=200, **UNTRUSTED)
    assert_plain_pass(checkpoint, prompts, embedder.embed(prompts, ignore))
    spans = [Span.from_start(prompt, 1) for prompt in prompts]
    for one, other in zip(
        embedder.embed(prompts, ignore).logprobs, embedder.logprobs(spans, ignore), strict=True
    ):
        assert np.array_equal(one, other)  # the hidden states are kept on the way


def test_no_model_is_loaded_without_some_weights(model_of: ModelOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_of("Llama"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.norm\.weight"):
        load_model(read_checkpoint(folder), trust_remote_code=False)


def test_a_model_that_is_no_language_model_is_one_line(model_of: ModelOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_of("Llama"), tmp_path / "model"))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"transformers \S+ has no causal language model of this"):
        load_model(read_checkpoint(folder), trust_remote_code=False)


@pytest.fixture(scope="session")
def fast(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers behind the tokenizer of the embedded checkpoint."""
    folder = tmp_path_factory.mktemp("fast")
    config = AutoConfig.from_pretrained(
        checkpoint,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,  # its predictions are far from even
    )
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    ("model_name", "template", "max_length"),
    [
        ("checkpoint", "alpaca", 512),
        ("fast", "alpaca", 80),
        ("fast", "wizardlm", 64),
        ("fast", "vicuna", 96),
        ("fast", "chat", 100),
    ],
)
def test_scores_agree_with_the_slow_reference(
    request: pytest.FixtureRequest,
    shipped_rows: list[dict[str, str]],
    model_name: str,
    template: str,
    max_length: int,
) -> None:
    rows = shipped_rows[::2] if model_name == "checkpoint" else shipped_rows
    folder = request.getfixturevalue(model_name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf = hf_engine(folder, 1024)
    model = hf._model
    prompt = build_template(tokenizer, prompt_of(compose(f"prompt={template}")))
    builder = SpanBuilder(tokenizer, prompt, max_length=max_length, vocab_size=49152)
    triples = [single_turn(row["instruction"], row["input"], row["output"]) for row in rows]
    scores = score_conversations(triples, builder, hf)
    seen: list[Any] = []
    for row, found in zip(rows, scores.iter_rows(named=True), strict=True):
        fields = (row["instruction"], row["input"], row["output"])
        expected = reference_scores(model, tokenizer, template, *fields, max_length)
        if isinstance(expected, str):
            assert found["drop_reason"] == expected
            assert found["ifd"] is None
            seen.append(expected)
            continue
        assert found["num_answer_tokens"] == expected["num_answer_tokens"]
        assert found["truncated"] == expected["truncated"]
        for name in ("conditioned_score", "direct_score", "ifd"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4)
        above = DropReason.IFD_ABOVE_ONE.value if expected["ifd"] > 1 else None
        assert found["drop_reason"] == above
        seen.append(expected["truncated"])
    assert False in seen
    if max_length < 512:
        assert True in seen
        assert DropReason.PROMPT_TOO_LONG in seen


def make_talks(rows: list[dict[str, str]]) -> list[list[tuple[str, str]]]:
    """Conversations of one to five turns, every other one with a system message."""
    talks = []
    for start in range(0, len(rows) - 5, 3):
        talk = [("system", rows[start]["output"][:60])] if start % 2 else []
        for row in rows[start : start + 1 + start % 5]:
            talk += [("user", row["instruction"] + row["input"]), ("assistant", row["output"])]
        talks.append(talk)
    return talks


@pytest.mark.parametrize("template", ["chat", "vicuna"])
@pytest.mark.parametrize("max_length", [512, 120])
def test_conversations_agree_with_the_slow_reference(
    tiny: Path, shipped_rows: list[dict[str, str]], template: str, max_length: int
) -> None:
    tokenizer, hf = AutoTokenizer.from_pretrained(tiny), hf_engine(tiny, 1024)
    prompt = build_template(tokenizer, prompt_of(compose(f"prompt={template}")))
    builder = SpanBuilder(tokenizer, prompt, max_length=max_length, vocab_size=len(tokenizer))
    talks = make_talks(shipped_rows)
    conversations = [
        Conversation(tuple(Message(*said, "", said[0] == ASSISTANT) for said in talk))
        for talk in talks
    ]
    scores = score_conversations(conversations, builder, hf)
    cut = 0
    for talk, found in zip(talks, scores.iter_rows(named=True), strict=True):
        expected = conversation_scores(hf._model, tokenizer, template, talk, max_length)
        if isinstance(expected, str):
            assert (found["drop_reason"], found["ifd"]) == (expected, None)
            continue
        for name in ("num_turns", "num_answer_tokens", "truncated"):
            assert found[name] == expected[name]
        for name in ("conditioned_score", "direct_score", "ifd", "turn_ifd"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4)
        cut += expected["truncated"]
    assert scores["num_turns"].max() == (5 if max_length == 512 else 3)
    assert cut if max_length == 120 else not cut
