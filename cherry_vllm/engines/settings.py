"""What an engine is run with: the keys of ``conf/engine/``, checked there."""

from dataclasses import asdict, dataclass
from typing import Any

# Settings that decide whether a run fits in memory, and no score: changing them resumes a run.
MEMORY_SETTINGS = ("gpu_memory_utilization", "cpu_kv_cache_gib")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What every engine has."""

    name: str  # "vllm_fused", "vllm" or "hf"
    dtype: str  # of weights and activations: "auto" (the checkpoint's), "float32", "bfloat16", ...

    @property
    def num_devices(self) -> int:
        """How many GPUs one engine computes on, where there are some."""
        return 1

    def computes_in(self, checkpoint_dtype: str) -> str:
        """The type of the activations, for a checkpoint that is saved in ``checkpoint_dtype``."""
        return checkpoint_dtype if self.dtype == "auto" else self.dtype

    @property
    def usual_start(self) -> str:
        """How long loading usually takes, in words."""
        return "a few seconds"

    def identity(self) -> dict[str, Any]:
        """The settings that decide a score, as fingerprints hash them."""
        items = asdict(self).items()
        return {key: value for key, value in items if key not in MEMORY_SETTINGS}


@dataclass(frozen=True, kw_only=True)
class VllmSettings(EngineSettings):
    """vLLM, fused or stock; ``conf/engine/vllm.yaml`` and ``vllm_fused.yaml`` explain the keys."""

    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    enforce_eager: bool
    enable_prefix_caching: bool
    cpu_kv_cache_gib: float

    @property
    def num_devices(self) -> int:
        """See :attr:`EngineSettings.num_devices`."""
        return self.tensor_parallel_size

    @property
    def usual_start(self) -> str:
        """See :attr:`EngineSettings.usual_start`."""
        if self.enforce_eager:
            return "half a minute"
        return "one or two minutes, because vLLM compiles it; the next time, half a minute"


@dataclass(frozen=True, kw_only=True)
class HfSettings(EngineSettings):
    """transformers."""

    device: str  # "auto", "cpu", "cuda", "cuda:1", ...
    batch_tokens: int  # a batch's padded tokens at most; 1 runs one sequence at a time
