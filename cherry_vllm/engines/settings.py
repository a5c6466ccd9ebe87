"""Settings of an engine: the keys of ``conf/engine/``; :mod:`config` checks their ranges."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Settings that decide whether a run fits in memory, but no score: a run resumes if they change.
MEMORY_SETTINGS = ("gpu_memory_utilization", "cpu_kv_cache_gib")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of every engine."""

    name: str  # "vllm_fused", "vllm", "vllm_server" or "hf"
    dtype: str  # of weights and activations: "auto" (the checkpoint's), "float32", "bfloat16", ...

    @property
    def num_devices(self) -> int:
        """How many GPUs one engine uses, if there are any."""
        return 1

    def computes_in(self, checkpoint_dtype: str) -> str:
        """The type of the activations, for a checkpoint that is saved in ``checkpoint_dtype``."""
        return checkpoint_dtype if self.dtype == "auto" else self.dtype

    @property
    def usual_start(self) -> str:
        """How long loading usually takes, in words."""
        return "a few seconds"

    def identity(self) -> dict[str, Any]:
        """The settings that decide a score, for fingerprints."""
        items = asdict(self).items()
        return {key: value for key, value in items if key not in MEMORY_SETTINGS}


@dataclass(frozen=True, kw_only=True)
class VllmSettings(EngineSettings):
    """vLLM, fused or stock; ``conf/engine/vllm.yaml`` and ``vllm_fused.yaml`` explain the keys."""

    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    enforce_eager: bool | None  # None: open, until engines.compilation decides it
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
    """transformers; ``conf/engine/hf.yaml`` explains the keys."""

    device: str  # "auto", "cpu", "cuda", "cuda:1", ...
    batch_tokens: int  # at most this many padded tokens per batch; 1: one sequence at a time


# What other engines, and copies of a model, are compared with.
REFERENCE = HfSettings(name="hf", dtype="float32", device="auto", batch_tokens=2048)


@dataclass(frozen=True, kw_only=True)
class ServerSettings(EngineSettings):
    """vLLM servers; ``conf/engine/vllm_server.yaml`` explains the keys."""

    base_url: str | Sequence[str]
    model: str | None  # the name under which the servers serve it
    api_key_env: str | None
    concurrency: int  # requests in flight on each server
    timeout_s: float  # of one try, from its start to the last byte of the reply
    max_tries: int  # of one request, before the server counts as down
    patience_s: float  # without an answer from any server
    tolerance: float  # in nats

    @property
    def urls(self) -> list[str]:
        """The servers' addresses, each once."""
        given = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return list(dict.fromkeys(given))

    def computes_in(self, checkpoint_dtype: str) -> str:  # noqa: ARG002
        """See :attr:`EngineSettings.computes_in`: the servers decide, and do not tell."""
        return "unknown"

    def identity(self) -> dict[str, Any]:
        """See :meth:`EngineSettings.identity`; a model may move to other servers."""
        return {"name": self.name, "model": self.model}
