"""One run at a time: locks on a run folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cherry_vllm.errors import UserError


@contextmanager
def exclusive(run_dir: Path, name: str = ".lock", *, shared: bool = False) -> Iterator[None]:
    """Holds ``run_dir`` for this process; the lock goes with the process, however it ends.

    Several processes may hold a ``shared`` lock of one name, while none holds it alone.

    Raises:
        UserError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / name).open("a+") as file:
        try:
            # A record lock, unlike flock, is not inherited by the engine's child processes.
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            raise UserError(
                f"{run_dir}: in use by another run (process {file.read().strip() or 'unknown'}); "
                "wait for it, or choose another run_dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}{', among others' if shared else ''}")
        file.flush()
        yield


@contextmanager
def in_turn(run_dir: Path) -> Iterator[None]:
    """Waits until no other process is in such a block on ``run_dir``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".turn").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
