"""Workers as Ray actors: on one machine, or on a cluster that shares the run folder."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cherry_vllm.checks import whole
from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.console import quiet_libraries
from cherry_vllm.runtime.imports import make_environment_safe
from cherry_vllm.runtime.liveness import Pulse, cpu_seconds_of
from cherry_vllm.runtime.text import first_line
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.failures import EngineError
from cherry_vllm.workers.local import may_use_gpus
from cherry_vllm.workers.settings import RaySettings
from cherry_vllm.workers.work import Made, Piece, Task, Work

POLL_S = 0.5
LOCAL_STORE_BYTES = 100 * 2**20  # if Ray starts here: shards go through the disk, not the store


class RayExecutor:
    def __init__(self, settings: RaySettings, engine: EngineSettings) -> None:
        """See :func:`workers.build_executor`.

        Without ``num_workers`` there is one worker per GPU (or per group of GPUs that an engine
        uses), or as many as the CPUs are enough for.
        """
        whole(1).check("executor.num_workers", settings.num_workers)
        whole(1).check("executor.num_cpus", settings.num_cpus)
        _connect(settings.address)
        import ray

        resources, num_cpus = ray.cluster_resources(), settings.num_cpus
        gpus = engine.num_devices if may_use_gpus(engine) and resources.get("GPU", 0) else 0
        found = resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 1) // num_cpus
        self.num_workers = settings.num_workers or max(1, int(found))
        if self.num_workers > found:
            raise UserError(
                f"executor.num_workers={self.num_workers}: Ray has {resources.get('CPU', 0):g} "
                f"CPUs and {resources.get('GPU', 0):g} GPUs, enough for {found:g} workers; ask for "
                "fewer"
            )
        self._actor = ray.remote(num_cpus=num_cpus, num_gpus=gpus, concurrency_groups=GROUPS)(Actor)
        self._settings = settings

    def start(self, _slot: int, task: Task) -> "RayWorker":
        """See :class:`workers.Executor`."""
        return RayWorker(self._actor.remote(str(Path.cwd()), task), self._settings)


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
        with _away_from_data():
            _init_patiently(address=address, logging_level=logging.WARNING, **ours)
    except Exception as error:
        place = f"executor.address={address}" if address else "executor=ray"
        raise UserError(
            f"{place}: Ray is not available ({first_line(error)}); check the address, and "
            "that the machine has memory and cores left"
        ) from None
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own


def _init_patiently(**settings: Any) -> None:
    import ray

    try:
        ray.init(**settings)
    except Exception:  # it gives itself 30 seconds to start, too few on a busy machine
        ray.shutdown()
        ray.init(**settings)


@contextmanager
def _away_from_data() -> Iterator[None]:
    """Changes to the root folder while the block runs.

    Ray puts the current directory on the import path of its workers. A data folder's code must not
    run there; the root folder belongs to the administrator.
    """
    make_environment_safe()
    before = Path.cwd()
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(before)


# One thread runs the engine; another answers calls of `watch` in the meantime.
GROUPS = {"engine": 1, "watch": 1}


class Actor:
    """A worker's process on Ray."""

    def __init__(self, folder: str, task: Task) -> None:
        os.chdir(folder)  # paths may be relative
        quiet_libraries()
        self._task, self._num_units = task, 0

    def load(self) -> None:
        """Loads the model."""
        self._work = Work(self._task)

    def make(self, piece: Piece) -> Made:
        """See :meth:`work.Work.make`."""
        return self._work.make(piece, self._count)

    def watch(self) -> tuple[int, float]:
        """The units done and the CPU time used so far."""
        return self._num_units, cpu_seconds_of(os.getpid())

    def _count(self, num_units: int) -> None:
        self._num_units += num_units


class RayWorker:
    def __init__(self, actor: Any, settings: RaySettings) -> None:
        self._actor, self._settings = actor, settings
        self._num_units, self._cpu_seconds = 0, 0.0

    def load(self) -> None:
        """See :class:`workers.Worker`."""
        try:
            self._wait(self._call("load"), self._settings.load_timeout_s, lambda _units: None)
        except WorkerError as lost:
            lost.while_loading = True
            raise

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """See :class:`workers.Worker`."""
        timeout_s = self._settings.timeout_s * piece.patience
        made: Made = self._wait(self._call("make", piece), timeout_s, on_units)
        return made

    def kill(self) -> None:
        """See :class:`workers.Worker`."""
        import ray

        ray.kill(self._actor)

    def close(self) -> None:
        """See :class:`workers.Worker`."""
        self.kill()

    def _call(self, method: str, *arguments: Any) -> Any:
        group = "watch" if method == "watch" else "engine"
        return getattr(self._actor, method).options(concurrency_group=group).remote(*arguments)

    def _wait(self, result: Any, timeout_s: float, on_units: Callable[[int], None]) -> Any:
        import ray

        pulse = Pulse(timeout_s)
        try:
            while not ray.wait([result], timeout=POLL_S)[0]:
                num_new = self._watch()
                if num_new:
                    on_units(num_new)
                    pulse.report()
                elif reason := pulse.why_lost(self._cpu_seconds):
                    raise WorkerError(reason, is_timeout=True)
            return ray.get(result)
        except ray.exceptions.RayActorError as error:
            raise WorkerError(f"was lost ({' '.join(str(error).split())})") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineError):
                raise WorkerError.of_engine(error.cause) from None
            raise error.cause from None

    def _watch(self) -> int:
        """The number of newly finished units; 0 if the actor does not answer."""
        import ray

        try:
            found = ray.get(self._call("watch"), timeout=POLL_S)
        except ray.exceptions.GetTimeoutError:
            return 0
        num_new = found[0] - self._num_units
        self._num_units, self._cpu_seconds = found
        return int(num_new)
