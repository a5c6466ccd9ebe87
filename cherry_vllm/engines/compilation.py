"""Whether compiling a model pays: decided from the tokens of a run and the size of the model.

The figures come from docs/results.md. They are rough, but where they decide the wrong way, both
ways take about the same time.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import VllmSettings
from cherry_vllm.engines.weights import find_weights, read_shapes
from cherry_vllm.runtime.text import rough_time


@dataclass(frozen=True)
class Hardware:
    """What a kind of device does in eager mode, and what compiling a new model costs and gains."""

    operations_per_s: float
    tokens_per_s: float  # at most: what the host prepares for a small model
    compile_s: float
    share_saved: float  # of the eager time

    @property
    def worth_s(self) -> float:
        """The eager time from which on compiling pays."""
        return self.compile_s / self.share_saved


CPU_CORE = Hardware(1.5e11, math.inf, compile_s=100, share_saved=0.18)
GPU = Hardware(4e14, 1.5e5, compile_s=45, share_saved=0.12)


class Decision(NamedTuple):
    """The settings of ``engine.enforce_eager=auto``, settled, and a line that says why."""

    settings: VllmSettings
    reason: str


def decide(
    settings: VllmSettings,
    checkpoint: Checkpoint,
    *,
    num_tokens: int,
    is_on_gpu: bool,
    num_devices: int,
    num_cores: int,
) -> Decision:
    """Settles whether the model is compiled for a run of ``num_tokens`` tokens.

    ``num_devices`` are the GPUs that share the run.
    """
    hardware = GPU if is_on_gpu else CPU_CORE
    devices = num_devices if is_on_gpu else num_cores
    work = 2 * count_parameters(checkpoint) * num_tokens / (hardware.operations_per_s * devices)
    eager_s = max(work, num_tokens / hardware.tokens_per_s)
    pays = eager_s >= hardware.worth_s
    reason = (
        f"engine.enforce_eager=auto: {'compiled' if pays else 'not compiled'}, since about "
        f"{num_tokens:,} tokens take some {rough_time(eager_s)} uncompiled, and compiling pays "
        f"from {rough_time(hardware.worth_s)} on"
    )
    return Decision(replace(settings, enforce_eager=not pays), reason)


def count_parameters(checkpoint: Checkpoint) -> int:
    """The number of values in the weights, from the headers of their files."""
    files = find_weights(checkpoint.folder)
    return sum(math.prod(shape) for file in files for shape in read_shapes(file).values())
