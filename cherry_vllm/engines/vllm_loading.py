"""Loads vLLM to score, embed or generate, or says in one line why it cannot run a model."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

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


def load_llm(
    settings: VllmSettings,
    checkpoint: Checkpoint,
    max_model_len: int,
    use: Callable[[Checkpoint], dict[str, Any]],
    *,
    trust_remote_code: bool,
) -> Any:
    """Loads the engine in this process; ``use`` returns the arguments for its purpose."""
    check_weights(checkpoint.folder, trust_remote_code=trust_remote_code)
    set_environment()
    from vllm import LLM
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # before the list of models is read
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
        with _known_by_class(checkpoint, arguments):
            return LLM(**arguments)
    except ValueError as error:
        _raise_cause(error, checkpoint)
        raise


def for_generation(_checkpoint: Checkpoint) -> dict[str, Any]:
    """What vLLM takes to score with stock ``prompt_logprobs``, or to answer."""
    return {"runner": "generate", "skip_tokenizer_init": True}


def for_answer_model(checkpoint: Checkpoint) -> dict[str, Any]:
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


def set_environment() -> None:
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


@contextmanager
def _known_by_class(checkpoint: Checkpoint, arguments: dict[str, Any]) -> Iterator[None]:
    """Gives vLLM the model's class, if no other process needs it, instead of the class's name.

    vLLM inspects a class that it knows by name in a process of its own, which imports all of vLLM
    again: some ten seconds, the first time.

    Raises:
        UserError: the class cannot be imported.
    """
    from vllm import envs
    from vllm.model_executor.models import ModelRegistry

    architecture = _architecture(checkpoint)
    by_name = ModelRegistry.models.get(architecture)
    is_alone = arguments["tensor_parallel_size"] == 1 and not envs.VLLM_ENABLE_V1_MULTIPROCESSING
    if by_name is None or not is_alone:
        yield
        return
    named = arguments.pop("model_class_overrides", {}).get(architecture, "")
    module, _, name = named.partition(":")
    try:
        model_class = getattr(import_module(module), name) if name else by_name.load_model_cls()
    except (ImportError, OSError, RuntimeError) as error:
        raise _lacking(checkpoint, error) from None
    try:
        ModelRegistry.register_model(architecture, model_class)
        yield
    finally:
        ModelRegistry.models[architecture] = by_name


def _lacking(checkpoint: Checkpoint, cause: Exception) -> UserError:
    return UserError(
        f"{checkpoint.folder}: vLLM's {_architecture(checkpoint)} cannot be imported here "
        f"({cause}); install what is missing, or use engine=hf"
    )


def _refuse_overflow(checkpoint: Checkpoint) -> None:
    """Raises a UserError for int8 activations on a CPU that adds their products in 16 bits."""
    groups = (_quantization(checkpoint).get("config_groups") or {}).values()
    activations = [group.get("input_activations") or {} for group in groups]
    if lacks_int8() and any(it.get("type") == "int" for it in activations):
        raise UserError(
            f"{checkpoint.folder}: has int8 activations, whose products overflow in vLLM on this "
            "CPU (it has no VNNI instructions); use engine=hf"
        )


def _raise_cause(error: ValueError, checkpoint: Checkpoint) -> None:
    """Raises a UserError with the cause if vLLM cannot run such a model."""
    import vllm
    from vllm.model_executor.models import ModelRegistry

    from cherry_vllm.engines import answer_model

    architecture = _architecture(checkpoint)
    if "failed to be inspected" in str(error):
        try:
            ModelRegistry.models[architecture].load_model_cls()
        except ImportError as cause:
            raise _lacking(checkpoint, cause) from None
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


def _quantization(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the weights are quantized; empty if they are not."""
    return read_settings(checkpoint.folder / "config.json").get("quantization_config") or {}


def _architecture(checkpoint: Checkpoint) -> str:
    names = read_settings(checkpoint.folder / "config.json").get("architectures") or [""]
    return str(names[0])
