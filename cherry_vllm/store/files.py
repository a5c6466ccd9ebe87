"""Files that survive a kill: atomic writes, shards with completion markers, one run at a time."""

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError

log = logging.getLogger(__name__)

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


class Shards:
    """A folder of ``part-NNNNN.parquet``, each complete once ``part-NNNNN.done`` stands beside it.

    The folder is named by the fingerprint of the settings that made it, so shards of different
    settings never meet. A marker is written after its data and holds the data's row and byte
    count and its SHA-256; ``complete.json``, written last, closes the folder.
    """

    def __init__(self, parent: Path, settings: dict[str, Any]) -> None:
        self.fingerprint = fingerprint(settings)
        self.folder = parent / self.fingerprint
        self._settings = settings

    def path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def is_done(self, index: int) -> bool:
        """Whether the shard's marker is there and its data are, byte for byte, what was written."""
        path = self.path(index)
        marker = path.with_suffix(".done")
        if not marker.exists():
            return False
        try:
            written = read_json(marker)
            if path.stat().st_size == written["bytes"] and file_sha256(path) == written["sha256"]:
                return True
        except (FileNotFoundError, ValueError, KeyError):
            pass
        log.warning("%s: damaged, since it is not what was written; it is made again", path)
        return False

    def is_begun(self) -> bool:
        """Whether the settings are on record."""
        return (self.folder / "settings.json").is_file()

    def begin(self) -> None:
        """Records the settings, so that they are known before the folder is closed."""
        write_json(self.folder / "settings.json", self._settings)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of the shards that are not done."""
        return [index for index in indices if not self.is_done(index)]

    def num_rows(self, index: int) -> int:
        return int(read_json(self.path(index).with_suffix(".done"))["rows"])

    def write(self, index: int, frame: pl.DataFrame) -> None:
        path, buffer = self.path(index), io.BytesIO()
        path.with_suffix(".done").unlink(missing_ok=True)
        frame.write_parquet(buffer, row_group_size=ROW_GROUP_ROWS)
        content = buffer.getbuffer()
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        facts = {"rows": frame.height, "bytes": len(content)}
        digest = hashlib.sha256(content).hexdigest()
        write_json(path.with_suffix(".done"), {**facts, "sha256": digest})

    def discard(self, index: int) -> None:
        """Removes what a killed process may have left of a shard that it was writing."""
        for rest in self.folder.glob(f".{self.path(index).stem}.*"):
            rest.unlink(missing_ok=True)

    def read(self, index: int) -> pl.DataFrame:
        return pl.read_parquet(self.path(index), glob=False)

    def close(self, num_shards: int, **facts: Any) -> None:
        """Marks the folder complete, with anything worth knowing about how it came to be."""
        summary = {"num_shards": num_shards, **facts, "settings": self._settings}
        write_json(self.folder / "complete.json", summary)

    def reopen(self) -> None:
        """Takes the mark of completeness away."""
        (self.folder / "complete.json").unlink(missing_ok=True)

    def is_closed(self) -> bool:
        """Whether all shards were written once."""
        try:
            return self.num_shards >= 0
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def is_complete(self) -> bool:
        """Whether the folder was closed and every shard is still whole."""
        return self.is_closed() and not self.missing(range(self.num_shards))

    @property
    def summary(self) -> dict[str, Any]:
        """What :meth:`close` recorded."""
        return read_json(self.folder / "complete.json")

    @property
    def num_shards(self) -> int:
        return int(self.summary["num_shards"])

    def scan(self) -> pl.LazyFrame:
        """All shards of a closed folder as one lazy frame, in order."""
        return pl.scan_parquet([self.path(i) for i in range(self.num_shards)], glob=False)
