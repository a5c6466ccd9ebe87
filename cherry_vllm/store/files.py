"""Files that survive a kill: atomic writes, and names for contents."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

ROW_GROUP_ROWS = 20_000


OS_ERROR = re.compile(r"\(os error (\d+)\)")


def fingerprint(settings: dict[str, Any]) -> str:
    """Names a set of JSON-like settings: equal settings, equal 16 hex digits, in any key order."""
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` that becomes ``target`` only if the block succeeds.

    A kill at any moment leaves the old file or the new one, never a part of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers choose the format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
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

    A kill at any moment leaves the old folder, the new one, or, between two renames, none.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        target.with_name(f".{target.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old")
    )
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(target: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    with atomic_path(target) as path:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object that :func:`write_json` wrote."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
