"""The contract between a run over row shards and whatever runs its workers.

The driver (:mod:`workers.driver`), in the process that holds the run folder, knows which shards
are missing. Workers load the model once, get one piece after another, and write whole shards
themselves. An executor starts them, as processes of this machine or as Ray actors.
"""

from collections.abc import Callable
from typing import Protocol

from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.workers.failures import EngineError
from cherry_vllm.workers.settings import ExecutorSettings, RaySettings
from cherry_vllm.workers.work import Made, Piece, Task


class WorkerError(Exception):
    """A worker died, failed or hangs; the message continues "the engine ..."."""

    def __init__(self, reason: str, *, detail: str = "", is_timeout: bool = False) -> None:
        """Takes the reason; ``detail`` is a traceback, if there is one."""
        super().__init__(reason)
        self.detail, self.is_timeout = detail, is_timeout
        self.while_loading = False
        self.meets_every_row = self.is_unsupported = False

    @classmethod
    def of_engine(cls, error: EngineError) -> "WorkerError":
        """The error for what the engine of a worker raised."""
        lost = cls(error.summary, detail=str(error))
        lost.meets_every_row = error.meets_every_row
        lost.is_unsupported = error.is_unsupported
        return lost


class Worker(Protocol):
    def load(self) -> None:
        """Waits until the model is loaded.

        Raises:
            UserError: the model cannot be used.
            WorkerError: the worker died or timed out.
        """
        ...

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """Makes one piece; ``on_units`` is called with the number of newly finished units.

        Raises:
            UserError: the model's files changed since the run began.
            WorkerError: the worker died, or gave no sign of life until the timeout.
            OSError: the shard cannot be written.
        """
        ...

    def kill(self) -> None:
        """Ends the worker at once; a thread that waits for it gets a :class:`WorkerError`."""
        ...

    def close(self) -> None:
        """Ends the worker and all that it started."""
        ...


class Executor(Protocol):
    num_workers: int

    def start(self, slot: int, task: Task) -> Worker:
        """Starts worker number ``slot`` of :attr:`num_workers`, without waiting for it."""
        ...


def build_executor(settings: ExecutorSettings, engine: EngineSettings) -> Executor:
    """The executor that ``settings`` describe, for workers that run ``engine``.

    Raises:
        UserError: it is not installed, or there are not enough devices.
    """
    if isinstance(settings, RaySettings):
        from cherry_vllm.workers.ray import RayExecutor

        return RayExecutor(settings, engine)
    from cherry_vllm.workers.local import LocalExecutor

    return LocalExecutor(settings, engine)
