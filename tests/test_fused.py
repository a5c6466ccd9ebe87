"""The fused engine against a plain forward pass, where vLLM cuts, caches, preempts and mixes."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.errors import UserError

VOCABULARY = 300
MAX_LENGTH = 200
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
HEAD_32 = {"head_dim": 32}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
# What is special about each: tied or untied heads, biases, normed queries, capped or scaled logits,
# sliding windows, learned positions.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": SMALL,
    "Qwen2": SMALL | {"tie_word_embeddings": True},
    "Qwen3": SMALL | HEAD_32,
    "Gemma2": SMALL | HEAD_32 | {"final_logit_softcapping": 2.0, "sliding_window": 32},
    "Gemma3Text": SMALL | HEAD_32 | {"sliding_window": 32},
    "Granite": SMALL | {"logits_scaling": 4.0},
    "GPT2": GPT2 | {name: SMALL[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
}
# Prompts in many parts, uneven batches, and prefixes from the cache, all at once.
ADVERSE = (
    "engine.max_num_batched_tokens=48",
    "engine.max_num_seqs=5",
    "engine.dtype=float32",
    "engine.cpu_kv_cache_gib=1",
)


def make_checkpoint(architecture: str, folder: Path) -> Path:
    """A small random model; large weights, so that its predictions are far from even."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_spans() -> list[Span]:
    """Spans of all sorts: long, short, with a common prefix, the same twice, longer by a bit."""
    generator = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in generator.integers(3, VOCABULARY, count)]

    prefix, question = tokens(70), tokens(100)
    spans = [
        Span(tokens(length), start) for length, start in [(2, 1), (9, 8), (200, 1), (200, 199)]
    ]
    spans += [Span(prefix + tokens(30), start) for start in (70, 80, 40, 99)]
    spans += [Span(question + prefix, 100)] * 2  # in the cache to the end, the second time
    spans += [Span(question + prefix, 130), Span(question + prefix, 1)]
    return spans + [Span(tokens(length), length // 2) for length in (48, 49, 96, 33, 32, 31)]


class Scored(NamedTuple):
    logprobs: list[NDArray[np.float32]]
    num_uncached: int  # spans scored again, as the cache reached into their answers
    num_preemptions: int
    products: set[str]  # the methods of the layers' linear maps


def score(
    checkpoint: Path,
    spans: list[Span],
    *,
    name: str = "vllm_eager",
    preempt: bool = False,
    has_tiles: bool | None = None,
) -> Scored:
    """Scores with an engine that is built here; ``preempt`` interrupts it again and again, and
    ``has_tiles`` is what it is told of the CPU in place of the truth.
    """
    settings = engine_settings(compose(f"engine={name}", *ADVERSE).engine)
    capabilities = torch.cpu.get_capabilities()
    if has_tiles is not None:
        capabilities = capabilities | {"amx_bf16": has_tiles}
    with patch("torch.cpu.get_capabilities", return_value=capabilities):
        engine: Any = build_engine(
            settings, read_checkpoint(checkpoint), max_length=MAX_LENGTH, trust_remote_code=False
        )

    num_uncached = num_preemptions = 0
    encode = engine._encode

    def encode_and_count(spans: list[Span], on_scored: Any, *, use_cache: bool) -> Any:
        nonlocal num_uncached
        num_uncached += 0 if use_cache else len(spans)
        return encode(spans, on_scored, use_cache=use_cache)

    def on_scored(_count: int) -> None:
        nonlocal num_preemptions
        if preempt:
            num_preemptions += engine._llm.reset_prefix_cache(reset_running_requests=True)

    engine._encode = encode_and_count
    (products,) = engine._llm.apply_model(name_products)
    return Scored(engine.logprobs(spans, on_scored), num_uncached, num_preemptions, products)


def name_products(model: torch.nn.Module) -> set[str]:
    methods = (getattr(module, "quant_method", None) for module in model.modules())
    return {type(method).__name__ for method in methods} & {
        "TorchLinearMethod",
        "UnquantizedLinearMethod",
    }


@pytest.fixture(scope="module")
def in_process() -> Iterator[Callable[..., Any]]:
    """Runs :func:`score` in one process of its own, where one engine follows another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda *arguments, **keywords: pool.submit(score, *arguments, **keywords).result()


def expected_logprobs(checkpoint: Path, spans: list[Span]) -> list[NDArray[np.float32]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",  # others leave the cap of Gemma 2 out
    )
    results = []
    for ids, start in spans:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids])).logits[0]
        chosen = logits.log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]
        results.append(chosen.numpy())
    return results


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_of_every_architecture(
    architecture: str, tmp_path: Path, in_process: Callable[..., Any]
) -> None:
    checkpoint, spans = make_checkpoint(architecture, tmp_path), make_spans()
    expected = expected_logprobs(checkpoint, spans)
    assert np.std(np.concatenate(expected)) > 0.1
    scored = in_process(checkpoint, spans)
    assert scored.num_uncached >= 1
    for span, left, right in zip(spans, scored.logprobs, expected, strict=True):
        assert left.shape == (span.num_answer_tokens,)
        np.testing.assert_allclose(left, right, atol=2e-4)


def test_compiled_log_probs_are_the_same(tmp_path: Path, in_process: Callable[..., Any]) -> None:
    checkpoint, spans = make_checkpoint("Qwen2", tmp_path), make_spans()
    scored = in_process(checkpoint, spans, name="vllm_fused")
    for left, right in zip(scored.logprobs, expected_logprobs(checkpoint, spans), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)


@pytest.mark.parametrize(
    ("has_tiles", "product"), [(False, "UnquantizedLinearMethod"), (True, "TorchLinearMethod")]
)
def test_log_probs_with_either_kind_of_product(
    *, has_tiles: bool, product: str, tmp_path: Path, in_process: Callable[..., Any]
) -> None:
    checkpoint, spans = make_checkpoint("Qwen2", tmp_path), make_spans()
    scored = in_process(checkpoint, spans, has_tiles=has_tiles)
    assert scored.products == {product}
    for left, right in zip(scored.logprobs, expected_logprobs(checkpoint, spans), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)


def test_preemption_leaves_no_gap(tmp_path: Path, in_process: Callable[..., Any]) -> None:
    checkpoint, spans = make_checkpoint("Llama", tmp_path), make_spans()
    scored = in_process(checkpoint, spans, preempt=True)
    assert scored.num_preemptions >= 5
    for left, right in zip(scored.logprobs, expected_logprobs(checkpoint, spans), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)


@pytest.mark.parametrize("way", ["slice_by_slice", "compiled_one_pass"])
def test_log_probs_that_one_pass_cannot_hold(way: str) -> None:
    from cherry_vllm.engines import answer_model

    logits = 8 * torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    logits[3, 7], logits[4] = 200, torch.linspace(-300, 300, 5000)
    logits[5, 9] = -float("inf")
    targets = torch.full([40], 9)
    exact = logits.double().log_softmax(-1)[:, 9]
    assert exact[3] < -150
    assert exact[4] < -500
    found = answer_model.target_logprobs(getattr(answer_model, way), logits, targets)
    assert found.dtype == torch.float32
    assert found[5] == exact[5] == -float("inf")
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_a_model_that_vllm_has_no_class_for_costs_one_line(
    tmp_path: Path, in_process: Callable[..., Any]
) -> None:
    checkpoint = make_checkpoint("Llama", tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["OfTomorrowForCausalLM"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"OfTomorrow.*use engine=vllm"):
        in_process(checkpoint, make_spans())
