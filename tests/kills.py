"""Kills at chosen moments: every state that a folder passes through is seen by some kill."""

import os
import signal
from collections.abc import Callable
from typing import Any

from cherry_vllm.store import files

STEPS = ("replace", "unlink", "rmdir", "mkdir", "open")  # what changes a folder


def dies_at_step(number: int, act: Callable[[], object]) -> bool:
    """Runs ``act`` in a forked process that is killed before its system call ``number`` that
    changes a folder; False if it came to its end.

    ``act`` must not need locks that other threads of this process may hold, as Polars does.
    """
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status != 0
    left = number

    def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return step

    status = 1
    try:
        for name in STEPS:
            setattr(os, name, stepping(getattr(os, name)))
        files._swap = stepping(files._swap)
        files._sync = lambda path: None  # noqa: ARG005 - takes long, and a killed process needs none
        act()
        status = 0
    finally:
        os._exit(status)
