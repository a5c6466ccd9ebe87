"""Ctrl-C, SIGTERM and SIGHUP end a command within two seconds, whatever it is doing.

A signal raises KeyboardInterrupt in the main thread, which cleans up. Where the main thread cannot
be interrupted (in a library's native code, or while other threads finish), a watcher ends the
process after a grace period. Nothing is lost: files are written atomically, and runs resume.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread, current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 1.2  # to clean up

_ending = Lock()
_received: list[int] = []
_wakes = socket.socketpair()  # Python writes each signal's number to the second


@contextmanager
def obeying_signals() -> Iterator[None]:
    """Ends this process with exit code 128 + n if signal n arrives in the block.

    The last line on stderr then says that the same command resumes.
    """
    install_handlers()
    for end in _wakes:
        end.setblocking(end is _wakes[0])
    signal.set_wakeup_fd(_wakes[1].fileno(), warn_on_full_buffer=False)
    Thread(target=_watch, name="signals", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt as error:
        end_process(error.args[0] if error.args else signal.SIGINT)
    finally:
        if _received:  # something may have replaced the KeyboardInterrupt
            end_process(_received[0])


def install_handlers() -> None:
    """Installs our handlers. Call it again after a library has replaced them, as Polars does.

    A signal that this process was started to ignore (``nohup``) stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt_once)


def restore_handlers() -> None:
    """Reinstalls our handlers, if they were in use, after an import that replaced one."""
    if signal.getsignal(signal.SIGTERM) is _interrupt_once:
        install_handlers()


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A signal handler that does what Ctrl-C does, for any signal."""
    raise KeyboardInterrupt(number)


def _interrupt_once(number: int, _frame: FrameType | None) -> None:
    # A second signal does not disturb the clean-up: the watcher ends the process.
    _received.append(number)
    if len(_received) == 1:
        raise KeyboardInterrupt(number)


def _watch() -> None:
    """Ends the process when the grace period after a signal is over, or at a second signal."""
    first = _next_signal()
    started = time.monotonic()
    _wakes[0].settimeout(GRACE_S)
    try:
        _next_signal()
        if time.monotonic() - started < 0.1:  # one event that was sent as two signals
            time.sleep(GRACE_S)
    except TimeoutError:
        pass
    end_process(first)


def _next_signal() -> int:
    while True:
        number = _wakes[0].recv(1)[0]
        if number in SIGNALS:
            return number


def end_process(number: int) -> None:
    """Ends this process and all that it started, with the exit code for signal ``number``."""
    _ending.acquire()  # a second caller waits here for the end
    kill_all(descendants(os.getpid()))
    if current_thread() is main_thread():  # which may be blocked in this very call
        with suppress(OSError, ValueError):  # nobody may be reading any more
            sys.stdout.flush()
    name = signal.Signals(number).name
    with suppress(OSError):
        # On a line of its own, not behind a progress bar or the terminal's ^C.
        os.write(2, f"\ncherry-vllm: stopped by {name}; the same command resumes\n".encode())
    os._exit(128 + number)


def kill_all(pids: list[int]) -> None:
    """Ends processes at once; those that have already ended are ignored."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` and its descendants started and that still exist."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        found = read_stat(int(folder.name))
        if found:
            children.setdefault(int(found[1]), []).append(int(folder.name))
    tree = [pid]
    for parent in tree:
        tree += children.get(parent, [])
    return tree[1:]


def read_stat(pid: int) -> list[str]:
    """The fields of a process's ``/proc/PID/stat`` from its state on; [] if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
