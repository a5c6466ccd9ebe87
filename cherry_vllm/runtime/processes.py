"""Child processes, for work whose memory or crash must not affect this process."""

import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes.util import find_library
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.console import is_verbose, quiet_libraries
from cherry_vllm.runtime.imports import safe_environment
from cherry_vllm.runtime.liveness import Pulse, cpu_seconds_of
from cherry_vllm.runtime.signals import descendants, interrupt, kill_all

PR_SET_PDEATHSIG = 1  # of Linux's prctl
GRACE_S = 10.0  # for a child to exit
GC_THRESHOLD = 100_000  # objects; at Python's 700, a seventh of vLLM's import is garbage collection
INTERRUPT_GRACE_S = 0.5  # to clean up after a signal; less than :data:`signals.GRACE_S`
HOME = Path(__file__).parents[2]  # the folder that holds this package
# The path's last entry is needed by a checkout that is not installed.
BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv.pop()); "
    "from cherry_vllm.runtime.processes import run_child; run_child(*sys.argv[1:])"
)

T = TypeVar("T")


class ChildError(Exception):
    """A child ended or hangs; the message continues a sentence, such as "its process ..."."""


class ChildTimeoutError(ChildError):
    """A child neither reported nor computed anything until the timeout."""


class Wire(Connection):
    """A connection that several threads may send through."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._send_lock = Lock()

    def send(self, message: Any) -> None:
        with self._send_lock:
            super().send(message)

    put_nowait = send  # the name by which logging's QueueHandler calls it


class Child:
    """A Python process that runs ``function(wire, *arguments)`` and does not outlive this one.

    It leads its own session, so that Ctrl-C reaches only this process, and everything that the
    child starts can be ended with it. Its log records are handled in this process.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Function and arguments are pickled; ``environment`` is added to this process's own."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [str(theirs.fileno()), str(os.getpid()), str(HOME)]
            command = [sys.executable, "-P", "-c", BOOTSTRAP, *words]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**safe_environment(), **(environment or {})},
            )
        self._wire = Wire(ours.detach())
        self._end = os.pidfd_open(self._process.pid)
        self._lock, self._closed = Lock(), False
        self.send((function, arguments))

    def send(self, message: Any) -> None:
        """Sends a message; if the child is gone, :meth:`receive` will notice it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._wire.send(message)

    def receive(self, timeout_s: float | None = None) -> Any:
        """The child's next message.

        Raises:
            ChildTimeoutError: the child neither sent, logged nor computed anything for
                ``timeout_s``.
            ChildError: the child ended.
        """
        pulse = Pulse(timeout_s) if timeout_s else None
        while True:
            ready = wait([self._wire, self._end], pulse.seconds_left() if pulse else None)
            if pulse and not ready:
                if reason := pulse.why_lost(cpu_seconds_of(self._process.pid)):
                    raise ChildTimeoutError(reason)
                continue
            if self._wire not in ready:
                raise ChildError(self._describe_end())
            try:
                message = self._wire.recv()
            except (EOFError, OSError):
                raise ChildError(self._describe_end()) from None
            if not isinstance(message, logging.LogRecord):
                return message
            if pulse:
                pulse.report()
            logger = logging.getLogger(message.name)
            if logger.isEnabledFor(message.levelno):
                logger.handle(message)

    def _describe_end(self) -> str:
        # WNOWAIT: until the child is reaped, no other process can get its number.
        end = wait([self._end], GRACE_S) and os.waitid(
            os.P_PIDFD, self._end, os.WEXITED | os.WNOWAIT
        )
        if not end:
            return "hung up"
        if end.si_code == os.CLD_EXITED:
            return f"ended with exit code {end.si_status}"
        cause = ", most often because memory ran out" if end.si_status == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(end.si_status).name}{cause}"

    def interrupt(self) -> None:
        """Asks the child to clean up and end."""
        with self._lock, suppress(ProcessLookupError):
            if not self._closed:
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the child and all that it started at once; any thread may call this."""
        with self._lock:
            if not self._closed:
                pid = self._process.pid
                kill_all([pid, *descendants(pid)])
                with suppress(ProcessLookupError):  # orphans are still in the group
                    os.killpg(pid, signal.SIGKILL)

    def close(self, grace_s: float = 0) -> None:
        """Waits ``grace_s`` for the child to end, then kills it and all that it started."""
        wait([self._end], grace_s)
        self.kill()
        with self._lock:
            self._process.wait()
            self._closed = True
        self._wire.close()
        os.close(self._end)


def run_child(descriptor: str, parent: str) -> None:
    """Runs in the child's interpreter: receives a function and calls it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # the parent ended before the line above
        return
    gc.set_threshold(GC_THRESHOLD)
    wire = Wire(int(descriptor))
    logging.getLogger().addHandler(QueueHandler(wire))  # type: ignore[arg-type]
    logging.getLogger("cherry_vllm").setLevel(logging.INFO)
    quiet_libraries()
    if not is_verbose():
        logging.getLogger().setLevel(logging.ERROR)
    with suppress(EOFError):
        function, arguments = wire.recv()
        function(wire, *arguments)


def isolate(
    function: Callable[..., T],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    **keywords: Any,
) -> T:
    """Runs ``function`` in its own process, and returns or raises what it does.

    Raises:
        ChildError: the process ended before it could answer.
    """
    child = Child(_answer, partial(function, *arguments, **keywords), environment=environment)
    grace_s = GRACE_S
    try:
        returned, outcome = child.receive()
    except BaseException:  # also Ctrl-C
        grace_s = INTERRUPT_GRACE_S
        child.interrupt()
        raise
    finally:
        child.close(grace_s)
    if returned:
        return outcome  # type: ignore[no-any-return]
    raise outcome


def _answer(wire: Wire, function: Callable[[], Any]) -> None:
    signal.signal(signal.SIGTERM, interrupt)
    try:
        answer = True, function()
    except KeyboardInterrupt:
        return  # nobody waits for an answer
    except BaseException as error:
        if not isinstance(error, UserError):
            error.add_note(traceback.format_exc())
        answer = False, error
    wire.send(answer)


def preload_malloc() -> dict[str, str]:
    """The environment that makes a child use tcmalloc, which is faster for models on CPUs.

    It is empty if tcmalloc is not installed.
    """
    found = find_library("tcmalloc_minimal") or find_library("tcmalloc")
    return {"LD_PRELOAD": found} if found and "LD_PRELOAD" not in os.environ else {}
