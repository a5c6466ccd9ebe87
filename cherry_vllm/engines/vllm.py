"""vLLM, on GPU and CPU alike: stock ``prompt_logprobs``, mean pooling for embeddings, answers."""

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cherry_vllm.checkpoint import checkpoint_dtype
from cherry_vllm.engines import Continuation, Decoding, Span, until_stop


class VllmEngine:
    def __init__(self, model_path: Path, *, max_length: int, **settings: Any) -> None:
        """``settings`` are the keys of ``conf/engine/vllm.yaml`` and ``trust_remote_code``."""
        # Room for a prompt, and for the token that generate() makes.
        self._llm = _load(model_path, max_length + 1, **settings)
        from vllm import SamplingParams

        self._params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        if not spans:
            return []
        prompts = [{"prompt_token_ids": span.token_ids} for span in spans]
        self._llm.enqueue(prompts, self._params, use_tqdm=False)
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_scored))
        return [_answer_logprobs(span, output) for span, output in zip(spans, outputs, strict=True)]


class VllmEmbedder:
    def __init__(
        self, model_path: Path, *, max_length: int, max_num_batched_tokens: int, **settings: Any
    ) -> None:
        """Takes what :class:`VllmEngine` takes."""
        self._llm = _load(
            model_path,
            max_length,
            # A prompt is pooled in one piece.
            max_num_batched_tokens=max(max_num_batched_tokens, max_length),
            mean_pooled=True,
            **settings,
        )

    def embed(
        self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """See :class:`cherry_vllm.engines.Embedder`."""
        # encode() refuses an empty list.
        outputs = prompts and self._llm.encode(
            [{"prompt_token_ids": token_ids} for token_ids in prompts],
            pooling_task="embed",
            use_tqdm=partial(_Progress, on_scored=on_embedded),
        )
        embeddings = np.empty(
            (len(prompts), self._llm.model_config.get_hidden_size()), dtype=np.float32
        )
        for row, output in enumerate(outputs):
            embeddings[row] = output.outputs.data.float().numpy()
        return embeddings


class VllmGenerator:
    def __init__(
        self,
        model_path: Path,
        *,
        max_length: int,
        decoding: Decoding,
        stop_ids: Sequence[int],
        **settings: Any,
    ) -> None:
        """Takes what :class:`VllmEngine` takes, and how to write an answer."""
        self._llm = _load(model_path, max_length, **settings)
        self._max_length, self._decoding, self._stop_ids = max_length, decoding, list(stop_ids)

    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""
        if not prompts:
            return []
        params = [self._params(prompt, seed + place) for place, prompt in enumerate(prompts)]
        self._llm.enqueue(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
        )
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_answered))
        return [
            until_stop(output.outputs[0].token_ids, limit.max_tokens, self._stop_ids)
            for output, limit in zip(outputs, params, strict=True)
        ]

    def _params(self, prompt: list[int], seed: int) -> Any:
        from vllm import SamplingParams

        temperature, top_p, top_k, _ = self._decoding
        return SamplingParams(
            max_tokens=self._decoding.limit(prompt, self._max_length),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop_token_ids=self._stop_ids,
            detokenize=False,
        )


def _load(
    model_path: Path,
    max_model_len: int,
    *,
    dtype: str,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    enforce_eager: bool,
    cpu_kv_cache_gib: int,
    trust_remote_code: bool,
    mean_pooled: bool = False,
) -> Any:
    """The engine in this process; ``mean_pooled`` makes it return mean hidden states."""
    _set_environment(cpu_kv_cache_gib)
    from vllm import LLM
    from vllm.config import PoolerConfig

    pooling = {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": PoolerConfig(pooling_type="MEAN", use_activation=False),
    }
    return LLM(
        model=str(model_path),
        max_model_len=max_model_len,
        # vLLM's own "auto" rounds an fp32 checkpoint.
        dtype=checkpoint_dtype(model_path) if dtype == "auto" else dtype,
        load_format="safetensors",
        tensor_parallel_size=tensor_parallel_size,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        enforce_eager=enforce_eager,
        enable_prefix_caching=False,  # a cached prefix has no prompt log-probs
        skip_tokenizer_init=not mean_pooled,
        trust_remote_code=trust_remote_code,
        **(pooling if mean_pooled else {}),
    )


def _set_environment(cpu_kv_cache_gib: int) -> None:
    """What vLLM takes from the environment only; what the user has set stays."""
    # Its warnings are about serving; they go, with all it says, where they disturb no result.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # With the engine in this process all requests are queued before the first step, so batches,
    # and with them the low bits of the scores, are the same in every run.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # generate() wants room for the token it makes; a prompt may still fill the model's context.
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # vLLM's own choice keeps a core back.
        cores = sorted(os.sched_getaffinity(0))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cpu_kv_cache_gib))


class _Progress(tqdm):  # type: ignore[misc]
    """Hands vLLM's progress on instead of drawing it."""

    def __init__(self, *, on_scored: Callable[[int], None], **kwargs: Any) -> None:
        self._on_scored = on_scored
        super().__init__(**kwargs, file=io.StringIO(), leave=False)

    def update(self, n: float | None = 1) -> Any:
        self._on_scored(int(n or 0))
        return super().update(n)

    def display(self, *_args: Any, **_kwargs: Any) -> None:
        pass


def _answer_logprobs(span: Span, output: Any) -> NDArray[np.float32]:
    flat = output.prompt_logprobs
    # One entry per token but the first. Releases have returned those of other tokens.
    if flat.token_ids != span.token_ids[1:]:
        raise RuntimeError("vLLM returned log-probs of other tokens than the prompt's")
    return np.asarray(flat.logprobs[span.start - 1 :], dtype=np.float32)
