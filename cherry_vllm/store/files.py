"""Atomic writes, which survive a kill."""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import DamagedFileError

ROW_GROUP_ROWS = 20_000

OS_ERROR = re.compile(r"\(os error (\d+)\)")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` that becomes ``target`` only if the block succeeds.

    A kill at any moment leaves the old file or the new one, never a part of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target, "tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except (pl.exceptions.PolarsError, OSError) as error:
        number = OS_ERROR.search(str(error))
        if number is None:
            raise
        # Polars hides the system's errors in its own.
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of ``target`` only if the block succeeds.

    A kill at any moment leaves the old folder or the new one. Where the file system cannot swap
    two folders, it may leave the old one under another name, which :func:`remove_leftovers` undoes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary(target, "tmp"), _temporary(target, "old")
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        if not target.exists():
            os.replace(temporary, target)
        elif not _swap(temporary, target):
            os.replace(target, old)
            os.replace(temporary, target)
        _sync(target.parent)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Removes what a killed process left while writing ``target``, and restores an old folder.

    The caller must hold the lock under which ``target`` is written: temporary files of a process
    that is still at work look the same.
    """
    if not target.exists():
        for old in _leftovers(target, "old")[:1]:
            os.replace(old, target)
    for path in [*_leftovers(target, "tmp"), *_leftovers(target, "old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _temporary(target: Path, ending: str) -> Path:
    """A name that no other process uses, in any container or on any node."""
    node = re.sub(r"[^\w-]", "-", os.uname().nodename)[:32]
    token = f"{node}-{os.getpid()}-{secrets.token_hex(4)}"
    # The suffix stays at the end: writers choose the format by it.
    return target.with_name(f".{target.stem}.{token}.{ending}{target.suffix}")


def _leftovers(target: Path, ending: str) -> list[Path]:
    name = re.compile(
        rf"\.{re.escape(target.stem)}\.[\w-]+-\d+-[0-9a-f]{{8}}\.{ending}{re.escape(target.suffix)}"
    )
    if not target.parent.is_dir():
        return []
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def _swap(first: Path, second: Path) -> bool:
    """Exchanges two paths in one step; False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def sync_folder(folder: Path) -> None:
    """Returns once all that a folder holds is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(target: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    with atomic_path(target) as path:
        path.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object that :func:`write_json` wrote.

    Raises:
        DamagedFileError: the file holds something else. Catch it where the file can be made again.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or not UTF-8
        reason = str(error)
    else:
        if isinstance(value, dict):
            return value
        reason = "not a JSON object"
    raise DamagedFileError(f"{path}: damaged ({reason}); delete it and run the command again")
