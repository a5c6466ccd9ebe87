"""A call in a process of its own, so that a model's memory and an engine's state end with it."""

import ctypes
import logging.config
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from cherry_vllm.errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl

T = TypeVar("T")


class Isolation:
    """Runs calls in new processes, which log as this one does and do not outlive it."""

    def __init__(self, log_config: Mapping[str, Any]) -> None:
        self._log_config = dict(log_config)

    def __call__(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """What ``function`` returns or raises.

        Raises:
            UserError: its process was killed.
        """
        with ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(self._log_config,),
        ) as pool:
            try:
                return pool.submit(function, *arguments, **keywords).result()
            except BrokenProcessPool:
                raise UserError(
                    f"{function.__name__}: its process was killed, most often for want of memory; "
                    "the same command resumes"
                ) from None


def _start(log_config: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.config.dictConfig(log_config)
