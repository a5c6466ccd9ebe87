"""The contract between a run over row shards and whatever runs its workers.

The driver (:mod:`executors.driver`), in the process that holds the run folder, knows which shards
are missing. Workers build the model once, are handed piece after piece, and write whole shards
themselves. An executor starts them: processes of this machine, or Ray actors.
"""

from collections.abc import Callable
from typing import Any, Protocol

from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.errors import UserError
from cherry_vllm.workers.work import Made, Piece, Task


class WorkerError(Exception):
    """A worker died or hangs; the message goes on after "the engine"."""

    def __init__(self, reason: str, detail: str = "", *, while_loading: bool = False) -> None:
        """``detail`` is a traceback, if there is one."""
        super().__init__(reason)
        self.detail, self.while_loading = detail, while_loading


class Worker(Protocol):
    def load(self) -> None:
        """Waits until the model is loaded.

        Raises:
            UserError: the model cannot be used.
            WorkerError: the worker died, or took longer than it may.
        """
        ...

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """Makes one piece; ``on_units`` is called with numbers of finished units.

        Raises:
            WorkerError: the worker died, or gave no sign of life for longer than it may.
            OSError: the shard cannot be written.
        """
        ...

    def kill(self) -> None:
        """Ends the worker at once; a thread that waits for it gets :class:`WorkerError`."""
        ...

    def close(self) -> None:
        """Ends the worker, and all that it started."""
        ...


class Executor(Protocol):
    num_workers: int

    def start(self, slot: int, task: Task) -> Worker:
        """Starts worker number ``slot``, of :attr:`num_workers`, without waiting for it."""
        ...


def build_executor(name: str, engine: EngineSettings, **settings: Any) -> Executor:
    """The executor ``name`` ("local" or "ray") for workers that run ``engine``.

    ``settings`` are the executor's own: the keys of ``conf/executor/NAME.yaml``.

    Raises:
        UserError: the executor is unknown or not installed, or has not so many devices.
    """
    if name == "local":
        from cherry_vllm.workers.local import LocalExecutor

        return LocalExecutor(engine, **settings)
    if name == "ray":
        from cherry_vllm.workers.ray import RayExecutor

        return RayExecutor(engine, **settings)
    raise UserError(f"executor.name={name}: choose executor=local or executor=ray")
