"""vLLM, on GPUs and CPUs: scoring in two ways, embeddings and answers."""

import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cherry_vllm.engines import Continuation, Decoding, Embedded, Span, until_stop
from cherry_vllm.engines.checkpoint import Checkpoint, checkpoint_dtype
from cherry_vllm.engines.settings import VllmSettings
from cherry_vllm.engines.weights import check_weights, read_settings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.console import is_verbose, quiet_libraries
from cherry_vllm.runtime.cpu import lacks_int8

# An architecture that vLLM has no code for; it tries transformers' AutoModel then.
UNKNOWN = re.compile(
    r"rchitectures? .* not supported|no vLLM implementation|for this kind of AutoModel"
)
UNLOADED = re.compile(r"weights were not initialized from checkpoint: (\{.*\})")
NO_KERNEL = re.compile(
    r"[\w-]+ quantization is currently not supported in \w+|Unknown quantization method: [\w-]+"
    r"|Failed to find a kernel[^.]*|No compressed-tensors compatible scheme"
)


class VllmEngine:
    """Scores with stock ``prompt_logprobs``."""

    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
    ) -> None:
        # Room for a prompt, and for the token that generate() makes.
        self._llm = _load(
            settings, checkpoint, max_length + 1, _generating, trust_remote_code=trust_remote_code
        )
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


class FusedVllmEngine:
    """Scores and embeds with :mod:`answer_model`.

    The LM head sees answer rows only, and there is no object per token.
    """

    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
    ) -> None:
        """Loads the model.

        Raises:
            UserError: this vLLM has no such model class, or does not let it be replaced.
        """
        self._llm = _load(
            settings, checkpoint, max_length, _scoring_answers, trust_remote_code=trust_remote_code
        )

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        self._llm.reset_prefix_cache()  # else a resumed run would have other batches
        found = self._encode(spans, on_scored, use_cache=True)
        # A cached prefix that reaches into an answer has no hidden states there.
        missing = [index for index, floats in enumerate(found) if np.isposinf(floats).any()]
        again = self._encode([spans[index] for index in missing], _ignore, use_cache=False)
        for index, floats in zip(missing, again, strict=True):
            if np.isposinf(floats).any():
                raise RuntimeError("vLLM left out tokens of an answer")
            found[index] = floats
        return found

    def embed(self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]) -> Embedded:
        """See :class:`cherry_vllm.engines.Embedder`."""
        # Every token is scored but the first, and every token's hidden state is needed.
        spans = [Span.from_start(token_ids, 1) for token_ids in prompts]
        found = self._run(zip(prompts, spans, strict=True), on_embedded, use_cache=False, mean=True)
        width = self._llm.model_config.get_hidden_size()
        embeddings = np.empty((len(prompts), width), dtype=np.float32)
        for row, floats in enumerate(found):
            embeddings[row] = floats[:width]
        logprobs = [floats[width:] for floats in found]
        if any(np.isposinf(floats).any() for floats in logprobs):
            raise RuntimeError("vLLM left out tokens of a prompt")
        return Embedded(embeddings, logprobs)

    def _encode(
        self, spans: Sequence[Span], on_scored: Callable[[int], None], *, use_cache: bool
    ) -> list[NDArray[np.float32]]:
        # The last token is predicted, but predicts nothing.
        requests = ((span.token_ids[:-1], span) for span in spans)
        return self._run(requests, on_scored, use_cache=use_cache, mean=False)

    def _run(
        self,
        requests: Iterable[tuple[list[int], Span]],
        on_done: Callable[[int], None],
        *,
        use_cache: bool,
        mean: bool,
    ) -> list[NDArray[np.float32]]:
        """What the pooler returns for each prompt and the span that it begins."""
        from vllm.inputs.engine import tokens_input

        from cherry_vllm.engines.answer_model import MEAN, RANGES, TARGETS, TASK, Params

        for index, (token_ids, span) in enumerate(requests):
            targets = [token for start, stop in span.ranges for token in span.token_ids[start:stop]]
            params = Params(
                task=TASK,
                extra_kwargs={RANGES: span.ranges, TARGETS: targets, MEAN: mean},
                skip_reading_prefix_cache=not use_cache,
            )
            # Not LLM.encode(), which does a lot of work per request and needs a tokenizer.
            self._llm.llm_engine.add_request(str(index), tokens_input(token_ids), params)
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_done))
        return [output.outputs.data.numpy() for output in outputs]


class VllmGenerator:
    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
        decoding: Decoding,
        stop_ids: Sequence[int],
    ) -> None:
        self._llm = _load(
            settings, checkpoint, max_length, _generating, trust_remote_code=trust_remote_code
        )
        self._max_length, self._decoding, self._stop_ids = max_length, decoding, list(stop_ids)

    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""
        if not prompts:
            return []
        self._llm.reset_prefix_cache()
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

        return SamplingParams(
            max_tokens=self._decoding.limit(prompt, self._max_length),
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
            top_k=self._decoding.top_k,
            seed=seed,
            stop_token_ids=self._stop_ids,
            detokenize=False,
        )


def _load(
    settings: VllmSettings,
    checkpoint: Checkpoint,
    max_model_len: int,
    use: Callable[[Checkpoint], dict[str, Any]],
    *,
    trust_remote_code: bool,
) -> Any:
    """Loads the engine in this process; ``use`` returns the arguments for its purpose."""
    check_weights(checkpoint.folder, trust_remote_code=trust_remote_code)
    _set_environment()
    from vllm import LLM
    from vllm.platforms import current_platform

    is_on_cpu = current_platform.is_cpu()
    if is_on_cpu:
        _refuse_overflow(checkpoint)
    arguments: dict[str, Any] = dict(
        model=str(checkpoint.folder),
        config_format="hf",  # else vLLM prefers Mistral's own files, if present
        max_model_len=max_model_len,
        # vLLM's own "auto" rounds an fp32 checkpoint.
        dtype=settings.computes_in(checkpoint_dtype(checkpoint.folder)),
        load_format="safetensors",
        # So that a parameter without weights is an error in quantized models too.
        model_loader_extra_config={"enable_weights_track": True},
        language_model_only=True,  # no processor of images, which would need a tokenizer
        use_tqdm_on_load=is_verbose(),
        tensor_parallel_size=settings.tensor_parallel_size,
        # In a Ray actor vLLM would ask Ray for the GPUs that the actor already has.
        distributed_executor_backend="mp" if settings.tensor_parallel_size > 1 else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_memory_bytes=int(settings.cpu_kv_cache_gib * 2**30) if is_on_cpu else None,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        enforce_eager=bool(settings.enforce_eager),  # if it is open, the model is compiled
        enable_prefix_caching=settings.enable_prefix_caching,
        trust_remote_code=trust_remote_code,
        **use(checkpoint),
    )
    if not is_verbose():  # it logs a traceback before the error
        logging.getLogger("vllm.model_executor.models.registry").setLevel(logging.CRITICAL)
    try:
        with _registered(_architecture(checkpoint), arguments):
            return LLM(**arguments)
    except ValueError as error:
        _explain(error, checkpoint)
        raise


@contextmanager
def _registered(architecture: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Gives vLLM the model's class, if no other process needs it, instead of the class's name.

    vLLM inspects a class that it knows by name in a process of its own, which imports all of vLLM
    again: some ten seconds, the first time.
    """
    from vllm.model_executor.models import ModelRegistry

    by_name = ModelRegistry.models.get(architecture)
    if by_name is None or arguments["tensor_parallel_size"] > 1:
        yield
        return
    overrides = arguments.get("model_class_overrides", {})
    module, _, name = overrides.get(architecture, "").partition(":")
    try:
        with suppress(ImportError):  # which vLLM meets as well
            model_class = getattr(import_module(module), name) if name else by_name.load_model_cls()
            ModelRegistry.register_model(architecture, model_class)
            overrides.pop(architecture, None)
        yield
    finally:
        ModelRegistry.models[architecture] = by_name


def _refuse_overflow(checkpoint: Checkpoint) -> None:
    """Raises a UserError for int8 activations on a CPU that adds their products in 16 bits."""
    groups = (_quantization(checkpoint).get("config_groups") or {}).values()
    activations = [group.get("input_activations") or {} for group in groups]
    if lacks_int8() and any(it.get("type") == "int" for it in activations):
        raise UserError(
            f"{checkpoint.folder}: has int8 activations, whose products overflow in vLLM on this "
            "CPU (it has no VNNI instructions); use engine=hf"
        )


def _quantization(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the weights are quantized; empty if they are not."""
    return read_settings(checkpoint.folder / "config.json").get("quantization_config") or {}


def _explain(error: ValueError, checkpoint: Checkpoint) -> None:
    """Raises a UserError with the cause if vLLM cannot run such a model."""
    import vllm
    from vllm.model_executor.models import ModelRegistry

    from cherry_vllm.engines import answer_model

    architecture = _architecture(checkpoint)
    if "failed to be inspected" in str(error):
        try:
            ModelRegistry.models[architecture].load_model_cls()
        except ImportError as cause:
            raise UserError(
                f"{checkpoint.folder}: vLLM's {architecture} cannot be imported here ({cause}); "
                "install what is missing, or use engine=hf"
            ) from None
    if UNKNOWN.search(str(error)):
        raise UserError(
            f"{checkpoint.folder}: vLLM {vllm.__version__} has no architecture {architecture}; "
            "use engine=hf"
        ) from None
    if match := UNLOADED.search(str(error)):
        answer_model.refuse_unloaded(set(re.findall(r"'([^']+)'", match[1])))
    if _quantization(checkpoint) and (match := NO_KERNEL.search(str(error))):
        raise UserError(
            f"{checkpoint.folder}: vLLM {vllm.__version__} cannot compute with these quantized "
            f"weights on this machine ({match[0]}); use engine=hf"
        ) from None


def _architecture(checkpoint: Checkpoint) -> str:
    names = read_settings(checkpoint.folder / "config.json").get("architectures") or [""]
    return str(names[0])


def _generating(_checkpoint: Checkpoint) -> dict[str, Any]:
    return {"runner": "generate", "skip_tokenizer_init": True}


def _scoring_answers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Puts :mod:`answer_model` in the place of the checkpoint's model class."""
    import vllm
    from vllm.config import PoolerConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms import current_platform

    architecture = _architecture(checkpoint)
    if architecture not in ModelRegistry.models:
        raise UserError(
            f"{checkpoint.folder}: vLLM {vllm.__version__} has no architecture {architecture}; "
            "use engine=hf"
        )
    try:
        from cherry_vllm.engines import answer_model

        known = ModelRegistry.models[architecture]
        wrapped = known.class_name  # already wrapped by an earlier engine
        if known.module_name != answer_model.__name__:
            wrapped = f"{known.module_name}.{known.class_name}"
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"engine=vllm_fused: does not fit vLLM {vllm.__version__} and {checkpoint.folder} "
            f"({type(error).__name__}: {error}); use engine=vllm"
        ) from None
    # Prefixes are cached in whole blocks, and 32 tokens is the smallest block for attention on
    # CPUs. The head makes logits in fp32 where that is free, but on CPUs it is not.
    on_cpu = {"block_size": 32, "hf_overrides": {"head_dtype": "model"}}
    return {
        "runner": "pooling",
        "skip_tokenizer_init": True,
        "model_class_overrides": {architecture: f"{answer_model.__name__}:{wrapped}"},
        "pooler_config": PoolerConfig(task=answer_model.TASK, tok_pooling_type="ALL"),
        **(on_cpu if current_platform.is_cpu() else {}),
    }


def _set_environment() -> None:
    """Sets what vLLM reads only from the environment; variables that the user has set stay."""
    quiet_libraries()
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
        # vLLM cannot load again what it compiles ahead of time for CPUs; torch's cache can.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")


def _ignore(_count: int) -> None:
    pass


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
    # One entry per token but the first. Some releases have returned those of other tokens.
    if flat.token_ids != span.token_ids[1:]:
        raise RuntimeError("vLLM returned log-probs of tokens that are not the prompt's")
    of_ranges = (flat.logprobs[start - 1 : stop - 1] for start, stop in span.ranges)
    return np.asarray(list(chain.from_iterable(of_ranges)), dtype=np.float32)
