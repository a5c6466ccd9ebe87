"""How a run's workers are started: the keys of ``conf/executor/``, checked in :mod:`config`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Settings of every executor, and all that processes of this machine need."""

    num_workers: int | None  # None: one per device
    timeout_s: float  # without a sign of life from a worker at work
    load_timeout_s: float  # the same while it loads the model
    recycle_shards: int  # a new process replaces a worker after this many shards
    retry_failed: bool  # tries rows again that were dropped as engine_failed


@dataclass(frozen=True, kw_only=True)
class RaySettings(ExecutorSettings):
    """Settings of Ray actors."""

    num_cpus: int  # each worker reserves these and computes with them
    address: str | None  # of a cluster; None starts Ray on this machine
