"""How the workers of a run are started: the keys of ``conf/executor/``, checked there."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """What every executor has, and all that processes of this machine need."""

    num_workers: int | None = None  # None: one per device
    timeout_s: float = 600  # without a sign of life from a worker at work
    load_timeout_s: float = 3600  # the same while it loads the model
    recycle_shards: int = 200  # a new process takes a worker's place after so many
    retry_failed: bool = False  # makes shards again that hold rows dropped as engine_failed


@dataclass(frozen=True, kw_only=True)
class RaySettings(ExecutorSettings):
    """Ray actors."""

    num_cpus: int = 1  # that each worker reserves, and computes with
    address: str | None = None  # of a cluster; None starts Ray on this machine
