"""How the workers of a run are started: the keys of ``conf/executor/``, checked there."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """What every executor has, and all that processes of this machine need."""

    num_workers: int | None  # None: one per device
    timeout_s: float  # without a sign of life from a worker at work
    load_timeout_s: float  # the same while it loads the model
    recycle_shards: int  # a new process takes a worker's place after so many
    retry_failed: bool  # makes shards again that hold rows dropped as engine_failed


@dataclass(frozen=True, kw_only=True)
class RaySettings(ExecutorSettings):
    """Ray actors."""

    num_cpus: int  # that each worker reserves, and computes with
    address: str | None  # of a cluster; None starts Ray on this machine
