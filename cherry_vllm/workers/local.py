"""Workers as processes of this machine: one per device, or as many as asked for."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cherry_vllm.checks import whole
from cherry_vllm.engines.settings import EngineSettings, HfSettings, ServerSettings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import (
    GRACE_S,
    Child,
    ChildError,
    ChildTimeoutError,
    Wire,
    preload_malloc,
)
from cherry_vllm.runtime.versions import installed_version
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.failures import EngineError
from cherry_vllm.workers.settings import ExecutorSettings
from cherry_vllm.workers.work import Made, Piece, Task, Work

REPORT_S = 0.2  # between two reports of progress


class LocalExecutor:
    def __init__(self, settings: ExecutorSettings, engine: EngineSettings) -> None:
        """See :func:`workers.build_executor`.

        A device is a GPU, or the group of GPUs that one engine uses. On CPUs it is the whole
        machine; several workers split its cores.
        """
        whole(1).check("executor.num_workers", settings.num_workers)
        size = engine.num_devices
        gpus = find_gpus(engine)
        groups = [gpus[first : first + size] for first in range(0, len(gpus) - size + 1, size)]
        self.num_workers = settings.num_workers or max(1, len(groups))
        if gpus and self.num_workers > len(groups):
            raise UserError(
                f"executor.num_workers={self.num_workers}: {len(gpus)} GPUs are enough for "
                f"{len(groups)} engines of engine.tensor_parallel_size={size}; ask for fewer"
            )
        self._gpus, self._settings = groups, settings

    def start(self, slot: int, task: Task) -> "LocalWorker":
        """See :class:`workers.Executor`."""
        cores = [] if self._gpus else split_cores(slot, self.num_workers)
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus[slot])} if self._gpus else {}
        environment = gpus or preload_malloc()
        return LocalWorker(Child(serve, task, cores, environment=environment), self._settings)


class LocalWorker:
    def __init__(self, child: Child, settings: ExecutorSettings) -> None:
        self._child, self._settings = child, settings

    def load(self) -> None:
        """See :class:`workers.Worker`."""
        try:
            self._receive(self._settings.load_timeout_s)
        except WorkerError as lost:
            lost.while_loading = True
            raise

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """See :class:`workers.Worker`."""
        self._child.send(piece)
        while True:
            message = self._receive(self._settings.timeout_s * piece.patience)
            if isinstance(message, Made):
                return message
            on_units(message)

    def kill(self) -> None:
        """See :class:`workers.Worker`."""
        self._child.kill()

    def close(self) -> None:
        """See :class:`workers.Worker`."""
        self._child.send(None)
        self._child.close(GRACE_S)

    def _receive(self, timeout_s: float) -> Any:
        try:
            message = self._child.receive(timeout_s)
        except ChildError as lost:
            is_timeout = isinstance(lost, ChildTimeoutError)
            raise WorkerError(str(lost), is_timeout=is_timeout) from None
        if isinstance(message, EngineError):
            raise WorkerError.of_engine(message)
        if isinstance(message, Exception):
            raise message
        return message


def serve(wire: Wire, task: Task, cores: Sequence[int]) -> None:
    """Runs in a worker's process: answers each piece with counts of units, then the result."""
    if cores:  # before a library counts the cores
        os.sched_setaffinity(0, cores)
    try:
        work = Work(task)
        wire.send("loaded")
        while piece := wire.recv():
            reporter = _Reporter(wire)
            made = work.make(piece, reporter.count)
            reporter.flush()
            wire.send(made)
    except Exception as error:
        if not isinstance(error, UserError | EngineError | OSError):
            error.add_note(traceback.format_exc())
        wire.send(error)


class _Reporter:
    """Sends counts of units, several in one message."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._num_units, self._last = wire, 0, time.monotonic()

    def count(self, num_units: int) -> None:
        self._num_units += num_units
        if time.monotonic() - self._last > REPORT_S:
            self.flush()

    def flush(self) -> None:
        self._wire.send(self._num_units)
        self._num_units, self._last = 0, time.monotonic()


def split_cores(slot: int, num_workers: int) -> list[int]:
    """The cores of one worker, out of those that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    if num_workers > len(cores):
        return [cores[slot % len(cores)]]
    first, last = (len(cores) * position // num_workers for position in (slot, slot + 1))
    return cores[first:last]


def may_use_gpus(engine: EngineSettings) -> bool:
    """Whether each of the engine's workers gets GPUs of its own where there are some."""
    if isinstance(engine, HfSettings):
        return engine.device in ("auto", "cuda")  # "cuda:1" is the user's own choice
    if isinstance(engine, ServerSettings):
        return False
    return installed_version("vllm") is not None


def find_gpus(engine: EngineSettings) -> list[str]:
    """The GPUs that the engine's workers share out, named as in CUDA_VISIBLE_DEVICES."""
    if not (may_use_gpus(engine) and Path("/dev/nvidiactl").exists()):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
