"""How a run's workers are started: the keys of ``conf/executor/``, checked in :mod:`config`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Settings of every executor, and all that processes of this machine need."""

    num_workers: int | None = None  # None: one per device
    timeout_s: float = 600  # without a sign of life from a worker at work
    load_timeout_s: float = 3600  # the same while it loads the model
    recycle_shards: int = 200  # a new process replaces a worker after so many shards
    retry_failed: bool = False  # tries rows again that were dropped as engine_failed


@dataclass(frozen=True, kw_only=True)
class RaySettings(ExecutorSettings):
    """Settings of Ray actors."""

    num_cpus: int = 1  # each worker reserves these and computes with them
    address: str | None = None  # of a cluster; None starts Ray on this machine
