"""What tests run in the one process where vLLM is loaded; an engine stays for the tests after."""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import (
    Continuation,
    Decoding,
    Embedded,
    Span,
    build_embedder,
    build_engine,
    build_generator,
    vllm_loading,
)
from cherry_vllm.engines.checkpoint import read_checkpoint
from tests.engines.models import MAX_LENGTH

# Prompts in many parts, uneven batches, and prefixes from the cache, all at once.
ADVERSE = (
    "engine.max_num_batched_tokens=48",
    "engine.max_num_seqs=5",
    "engine.dtype=float32",
    "engine.cpu_kv_cache_gib=0.2",
)


class Scored(NamedTuple):
    logprobs: list[NDArray[np.float32]]
    num_uncached: int  # spans scored again, as the cache reached into their answers
    num_preemptions: int
    products: set[str]  # the methods of the layers' linear maps


def score(
    checkpoint: Path,
    spans: list[Span],
    *,
    name: str = "vllm_fused_eager",
    preempt: bool = False,
    has_tiles: bool | None = None,
    has_int8: bool | None = None,
    is_checked: bool = True,
) -> Scored:
    """Scores with a fused engine; ``preempt`` interrupts it again and again, and ``has_tiles`` and
    ``has_int8`` are what it is told of the CPU in place of the truth.

    With ``is_checked=False``, only vLLM checks the weights.
    """
    asked: Any = {"has_tiles": has_tiles, "has_int8": has_int8, "is_checked": is_checked}
    engine = _loaded(build_engine, checkpoint, name, **asked)
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

    (products,) = engine._llm.apply_model(_name_products)
    with patch.object(engine, "_encode", encode_and_count):
        logprobs = engine.logprobs(spans, on_scored)
    return Scored(logprobs, num_uncached, num_preemptions, products)


def score_stock(
    checkpoint: Path,
    spans: list[Span],
    *,
    has_int8: bool | None = None,
    is_checked: bool = True,
    trust_remote_code: bool = False,
) -> list[NDArray[np.float32]]:
    """Scores with stock ``prompt_logprobs``; see :func:`score`."""
    asked: Any = {
        "has_int8": has_int8,
        "is_checked": is_checked,
        "trust_remote_code": trust_remote_code,
    }
    engine = _loaded(build_engine, checkpoint, "vllm", "engine.enforce_eager=true", **asked)
    found: list[NDArray[np.float32]] = engine.logprobs(spans, _ignore)
    return found


def embed(checkpoint: Path, prompts: list[list[int]], *, preempt: bool = False) -> Embedded:
    """Mean hidden states and log-probs; see :func:`score`."""
    embedder = _loaded(build_embedder, checkpoint, "vllm_fused_eager")

    def on_embedded(_count: int) -> None:
        if preempt:
            embedder._llm.reset_prefix_cache(reset_running_requests=True)

    found: Embedded = embedder.embed(prompts, on_embedded)
    return found


def generate(checkpoint: Path, prompts: list[list[int]]) -> list[Continuation]:
    """Greedy answers of up to 8 tokens."""
    greedy: dict[str, Any] = {"decoding": Decoding(0, 1, 0, 8), "stop_ids": [1]}
    generator = _loaded(build_generator, checkpoint, "vllm_fused_eager", **greedy)
    answers: list[Continuation] = generator.generate(prompts, _ignore, seed=0)
    return answers


def inspects_by_name(run: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a new engine has vLLM inspect a model's class in a process of its own."""
    vllm_loading.set_environment()  # before the first import of vLLM
    from vllm.model_executor.models import registry

    _held.clear()
    registry._try_inspect_model_cls.cache_clear()
    with patch.object(
        registry._LazyRegisteredModel,
        "inspect_model_cls",
        autospec=True,
        side_effect=registry._LazyRegisteredModel.inspect_model_cls,
    ) as inspect:
        run(*arguments)
    return bool(inspect.called)


_held: list[Any] = []  # the newest engine, after what it was built from


def _loaded(
    build: Callable[..., Any],
    checkpoint: Path,
    name: str,
    *overrides: str,
    has_tiles: bool | None = None,
    has_int8: bool | None = None,
    is_checked: bool = True,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    asked = [build, checkpoint, name, has_tiles, has_int8, is_checked, trust_remote_code]
    if _held[:-1] != asked:
        _held.clear()
        gc.collect()
        capabilities = dict(torch.cpu.get_capabilities())
        if has_tiles is not None:
            capabilities["amx_bf16"] = has_tiles
        settings = engine_settings(compose(f"engine={name}", *ADVERSE, *overrides).engine)
        with ExitStack() as patches:
            patches.enter_context(patch("torch.cpu.get_capabilities", return_value=capabilities))
            if has_int8 is not None:
                patches.enter_context(
                    patch.object(vllm_loading, "lacks_int8", lambda: not has_int8)
                )
            if not is_checked:
                patches.enter_context(patch.object(vllm_loading, "check_weights"))
            engine = build(
                settings,
                read_checkpoint(checkpoint),
                max_length=MAX_LENGTH,
                trust_remote_code=trust_remote_code,
                **options,
            )
        _held.extend([*asked, engine])
    return _held[-1]


def _name_products(model: torch.nn.Module) -> set[str]:
    methods = (getattr(module, "quant_method", None) for module in model.modules())
    return {type(method).__name__ for method in methods} & {
        "TorchLinearMethod",
        "UnquantizedLinearMethod",
    }


def _ignore(_count: int) -> None:
    pass
