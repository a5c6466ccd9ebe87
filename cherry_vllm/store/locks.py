"""Locks on a folder, so that only one run at a time uses it.

The locks are POSIX record locks that belong to an open file, not to a process (``F_OFD_SETLK``).
They work between threads, processes, containers that share the folder, and nodes that mount it from
a server that supports such locks (NFS, Lustre with ``-o flock``, GPFS). A kill releases them. They
are not inherited by programs that the holder starts. No thread may take the same lock twice.
"""

import errno
import fcntl
import logging
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import remove_leftovers
from cherry_vllm.store.run_folder import RUN_LOCK

log = logging.getLogger(__name__)

HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
SIGNED = re.compile(r"(\d+ on \S+( among others.*)?)?")  # sharers may sign at the same time
POLL_S, PATIENCE_S = 0.05, 2.0


@contextmanager
def exclusive(run_dir: Path, name: str = RUN_LOCK, *, shared: bool = False) -> Iterator[None]:
    """Locks ``run_dir`` until the block ends, or the process, however it ends.

    Several processes may hold a ``shared`` lock of one name, if none holds it exclusively.

    Raises:
        UserError: another process holds the lock, or the file system does not support locks.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with _open(run_dir / name) as file:
        if not _try_lock(file, fcntl.F_RDLCK if shared else fcntl.F_WRLCK):
            raise UserError(
                f"{run_dir}: in use by another run ({_holder(file)}); "
                "wait for it, or choose another run_dir"
            )
        _sign(file, ", among others" if shared else "")
        yield


@contextmanager
def exclusive_share(run_dir: Path, index: int, count: int) -> Iterator[None]:
    """Locks share ``index`` of ``count`` of ``run_dir``; others may hold its other shares.

    Raises:
        UserError: another process holds this share, the whole folder, or a share of a different
            count; or the file system does not support locks.
    """
    with ExitStack() as held:
        with in_turn(run_dir):  # so that nobody takes a share between the steps
            held.enter_context(exclusive(run_dir, shared=True))
            _refuse_other_counts(run_dir, count)
            held.enter_context(exclusive(run_dir, f"{RUN_LOCK}-{index}-of-{count}"))
        yield


def _refuse_other_counts(run_dir: Path, count: int) -> None:
    for path in sorted(run_dir.glob(f"{RUN_LOCK}-*-of-*")):
        other = path.name.rpartition("-")[2]
        with _open(path) as file:
            if other != str(count) and not _try_lock(file, fcntl.F_RDLCK):
                raise UserError(
                    f"{run_dir}: in use by a run in {other} shares ({_holder(file)}); give "
                    f"share.count={other}, or wait for it"
                )


@contextmanager
def in_turn(folder: Path, name: str = ".turn") -> Iterator[None]:
    """Runs the block once no other process or thread is in such a block on ``folder``.

    Raises:
        UserError: the file system does not support locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _open(folder / name) as file:
        # Polled, because a signal would not interrupt one long wait: see signal(7) on SA_RESTART,
        # which Polars sets.
        asked, is_told = time.monotonic(), False
        while not _try_lock(file, fcntl.F_WRLCK):
            if not is_told and time.monotonic() - asked > PATIENCE_S:
                log.info("%s: waiting for another run (%s)", folder, _holder(file))
                is_told = True
            time.sleep(POLL_S)
        _sign(file)
        yield


@contextmanager
def changing(folder: Path, *names: str, lock: str = ".turn") -> Iterator[None]:
    """Runs a block that writes these files of ``folder``, one process at a time.

    Leftovers of a process that was killed while writing them are removed first.
    """
    with in_turn(folder, lock):
        for name in names:
            remove_leftovers(folder / name)
        yield


def _open(path: Path) -> TextIOWrapper:
    """Opens a lock file, which is made if there is none.

    Raises:
        UserError: there is a link, or a file that no run wrote.
    """
    try:
        file = open(path, "a+", encoding="utf-8", errors="replace", opener=_open_no_link)  # noqa: SIM115
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_ours(path) from None
        raise
    file.seek(0)
    if not SIGNED.fullmatch(file.read()):
        file.close()
        raise _not_ours(path)
    return file


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path}: not a lock file of cherry-vllm; move it, or choose another folder")


def _try_lock(file: TextIOWrapper, kind: int) -> bool:
    """Locks an open file; returns False if another process holds the lock."""
    request = struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0)  # the whole file
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno in NO_LOCKS:
            raise UserError(
                f"{Path(file.name).parent}: the file system does not support locks "
                f"({error.strerror}); use a local disk, or mount it with locks"
            ) from None
        raise
    return True


def _sign(file: TextIOWrapper, note: str = "") -> None:
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}{note}")
    file.flush()


def _holder(file: TextIOWrapper) -> str:
    file.seek(0)
    return f"process {file.read().strip() or 'unknown'}"
