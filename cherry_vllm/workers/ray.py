"""Workers that are Ray actors: on one machine, or on a cluster that shares the run folder."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.errors import UserError
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.local import uses_gpus
from cherry_vllm.workers.work import EngineError, Made, Piece, Task, Work

POLL_S = 0.5
LOCAL_STORE_BYTES = 100 * 2**20  # of a Ray started here: shards go by disk, not through it


class RayExecutor:
    def __init__(
        self,
        engine: EngineSettings,
        *,
        num_workers: int | None,
        num_cpus: int,
        address: str | None,
        timeout_s: float,
        load_timeout_s: float,
    ) -> None:
        """See :func:`executors.build_executor`.

        ``num_cpus`` is how many each worker reserves, and how many threads it computes with;
        ``address`` is a cluster's, None starts Ray on this machine. ``num_workers`` None is one per
        GPU (or ``tensor_parallel_size`` of them), or as many as the CPUs are enough for.
        """
        _connect(address)
        import ray

        resources = ray.cluster_resources()
        gpus = engine.num_devices if uses_gpus(engine) else 0
        gpus *= resources.get("GPU", 0) > 0
        found = resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 1) // num_cpus
        self.num_workers = num_workers or max(1, int(found))
        if self.num_workers > found:
            raise UserError(
                f"executor.num_workers={self.num_workers}: Ray has {resources.get('CPU', 0):g} "
                f"CPUs and {resources.get('GPU', 0):g} GPUs, enough for {found:g} workers"
            )
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=gpus, concurrency_groups=GROUPS)(Actor)
        self._timeout_s, self._load_timeout_s = timeout_s, load_timeout_s

    def start(self, _slot: int, task: Task) -> "RayWorker":
        """See :class:`executors.Executor`."""
        actor = self._actor.remote(str(Path.cwd()), task)
        return RayWorker(actor, self._timeout_s, self._load_timeout_s)


def _connect(address: str | None) -> None:
    try:
        import ray
    except ImportError:
        raise UserError("executor=ray: Ray is not installed; install cherry-vllm[ray]") from None
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level=logging.WARNING, **ours)
    except ConnectionError as error:
        raise UserError(f"executor.address={address}: {error}".splitlines()[0]) from None
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own


# One thread does all that the engine is asked for, another one answers meanwhile.
GROUPS = {"engine": 1, "watch": 1}


class Actor:
    """A worker's process on Ray."""

    def __init__(self, folder: str, task: Task) -> None:
        os.chdir(folder)  # paths may be relative
        self._task, self._num_units = task, 0

    def load(self) -> None:
        """Loads the model."""
        self._work = Work(self._task)

    def make(self, piece: Piece) -> Made:
        """See :meth:`work.Work.make`."""
        return self._work.make(piece, self._count)

    def count(self) -> int:
        """The units done so far."""
        return self._num_units

    def _count(self, num_units: int) -> None:
        self._num_units += num_units


class RayWorker:
    def __init__(self, actor: Any, timeout_s: float, load_timeout_s: float) -> None:
        self._actor, self._timeout_s, self._load_timeout_s = actor, timeout_s, load_timeout_s
        self._num_units = 0

    def load(self) -> None:
        """See :class:`executors.Worker`."""
        try:
            self._wait(self._call("load"), self._load_timeout_s, lambda _units: None)
        except WorkerError as lost:
            lost.while_loading = True
            raise

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """See :class:`executors.Worker`."""
        made: Made = self._wait(self._call("make", piece), self._timeout_s, on_units)
        return made

    def kill(self) -> None:
        """See :class:`executors.Worker`."""
        import ray

        ray.kill(self._actor)

    def close(self) -> None:
        """See :class:`executors.Worker`."""
        self.kill()

    def _call(self, method: str, *arguments: Any) -> Any:
        group = "watch" if method == "count" else "engine"
        return getattr(self._actor, method).options(concurrency_group=group).remote(*arguments)

    def _wait(self, result: Any, timeout_s: float, on_units: Callable[[int], None]) -> Any:
        import ray

        last_sign = time.monotonic()
        try:
            while not ray.wait([result], timeout=POLL_S)[0]:
                num_units = self._count()
                if num_units > self._num_units:
                    on_units(num_units - self._num_units)
                    self._num_units, last_sign = num_units, time.monotonic()
                elif time.monotonic() - last_sign > timeout_s:
                    raise WorkerError(f"gave no sign of life for {timeout_s:g} s")
            return ray.get(result)
        except ray.exceptions.RayActorError as error:
            raise WorkerError(f"was lost ({' '.join(str(error).split())})") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineError):
                raise WorkerError(error.cause.summary, str(error.cause)) from None
            raise error.cause from None

    def _count(self) -> int:
        import ray

        try:
            return int(ray.get(self._call("count"), timeout=POLL_S))
        except ray.exceptions.GetTimeoutError:
            return self._num_units
