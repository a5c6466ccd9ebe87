"""The processes that train: those of torchrun, or one of our own."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import ChildError, isolate, preload_malloc


def is_first_process() -> bool:
    """Whether this process reads and writes the run folder; under torchrun, rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_process_first() -> Iterator[None]:
    """Under torchrun, lets the first process through the block before the others."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, backend="gloo") if on_cpu else PartialState()
    with state.main_process_first():
        yield


def run_apart(work: Callable[[], list[dict[str, float]]]) -> list[dict[str, float]]:
    """Runs ``work`` in its own process, which frees all its memory; returns the losses."""
    try:
        return isolate(work, environment=child_environment())
    except ChildError as lost:
        raise UserError(
            f"training: its process {lost}; the same command resumes, and needs less memory "
            "if you lower train.micro_batch_tokens"
        ) from None


def child_environment() -> dict[str, str]:
    """The environment of the training process; the user's own settings take precedence.

    See :func:`sleep_while_waiting`.
    """
    import torch

    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
    return waiting if torch.cuda.is_available() else {**waiting, **preload_malloc()}


def sleep_while_waiting() -> None:
    """Lets this process's threads sleep while they wait for each other; call it before torch loads.

    If they were spinning, they would take a shared core from the thread that they wait for. The
    user's own setting takes precedence.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
