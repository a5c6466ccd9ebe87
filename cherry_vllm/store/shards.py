"""Shards with completion markers."""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, Self

import numpy as np
import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.schema import Schema
from cherry_vllm.store.files import ROW_GROUP_ROWS, atomic_path, read_json, write_json
from cherry_vllm.store.hashes import file_sha256, fingerprint
from cherry_vllm.store.locks import changing
from cherry_vllm.store.run_folder import Inner

log = logging.getLogger(__name__)

CLOSED = {"num_shards", "contents", "versions", "settings"}  # keys of every complete.json


class Shards:
    """A folder of ``part-NNNNN.parquet``, each complete once its marker ``part-NNNNN.done`` exists.

    The folder is named by the fingerprint of the settings that made it, so shards of different
    settings never mix. A marker is written after its data. It holds their row and byte count, their
    SHA-256 and the versions that made them. ``complete.json``, written last, closes the folder.

    Each shard has one writer at a time, which holds the lock of the run folder or of a share of it.
    The state of the whole folder changes only inside :meth:`changing`.
    """

    def __init__(self, parent: Path, settings: dict[str, Any]) -> None:
        self.fingerprint = fingerprint(settings)
        self.folder = parent / self.fingerprint
        self.settings = settings
        self._holder: int | None = None  # the thread in `changing`

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The shards of a closed folder.

        Raises:
            UserError: it is missing, not closed, or not named by its settings.
        """
        try:
            shards = cls(folder.parent, read_json(folder / Inner.COMPLETE)["settings"])
        except (OSError, ValueError, KeyError):
            raise UserError(
                f"{folder}: no complete shards; run the command that makes them"
            ) from None
        if shards.folder != folder:
            raise UserError(f"{folder}: its name does not match its settings; make it again")
        if not shards.is_closed():
            raise UserError(
                f"{folder / Inner.COMPLETE}: damaged; run the command that makes these shards again"
            )
        return shards

    def path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.parquet"

    def is_done(self, index: int) -> bool:
        """Whether the shard has a marker and its data are byte for byte what was written."""
        path = self.path(index)
        if not self._marker(index).exists():
            return False
        try:
            written = self._written(index)
            if path.stat().st_size == written["bytes"] and file_sha256(path) == written["sha256"]:
                return True
        except (FileNotFoundError, ValueError, KeyError):
            pass
        log.warning("%s: damaged, since it is not what was written; it is made again", path)
        return False

    def missing(self, indices: Iterable[int]) -> list[int]:
        """The shards among ``indices`` that are not done."""
        return [index for index in indices if not self.is_done(index)]

    def marked(self, indices: Iterable[int]) -> list[int]:
        """The shards among ``indices`` that have a marker, whatever the state of their data."""
        # On a shared file system, listing the folder reveals what another node wrote.
        found = {path.stem for path in self.folder.glob("part-*.done")}
        return [index for index in indices if self.path(index).stem in found]

    def written(self) -> list[Path]:
        """The data files that are there, whole or not, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def unmark(self, index: int) -> None:
        """Removes a shard's marker, so that the shard is made again."""
        self._marker(index).unlink(missing_ok=True)

    def num_rows(self, index: int) -> int:
        return int(self._written(index)["rows"])

    def write(self, index: int, frame: pl.DataFrame) -> None:
        path, buffer = self.path(index), io.BytesIO()
        self.unmark(index)
        frame.write_parquet(buffer, row_group_size=ROW_GROUP_ROWS)
        content = buffer.getbuffer()
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        written = {
            "rows": frame.height,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "versions": installed_versions(),
        }
        write_json(self._marker(index), written)

    def discard(self, index: int) -> None:
        """Removes what a killed process may have left of a shard that it was writing."""
        for rest in self.folder.glob(f".{self.path(index).stem}.*"):
            rest.unlink(missing_ok=True)

    def read(self, index: int) -> pl.DataFrame:
        """One shard.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.path(index)
        try:
            content = path.read_bytes()
            written = self._written(index)["sha256"]
        except (FileNotFoundError, ValueError, KeyError):
            content, written = b"", None
        if hashlib.sha256(content).hexdigest() != written:
            raise _damaged(path)
        return pl.read_parquet(io.BytesIO(content))

    def draw(self, count: int, *, seed: int) -> pl.DataFrame:
        """``count`` rows of a closed folder, spread evenly, in order; all if there are no more.

        Raises:
            UserError: a shard is missing or damaged.
        """
        heights = [self.num_rows(index) for index in range(self.num_shards)]
        ends, total = np.cumsum(heights), sum(heights)
        edges = np.arange(min(count, total) + 1) * total // max(1, min(count, total))
        rows = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
        owners = np.searchsorted(ends, rows, side="right")
        drawn: list[pl.DataFrame] = []
        for index in map(int, np.unique(owners)):
            first = ends[index] - heights[index]
            drawn.append(self.read(index)[(rows[owners == index] - first).tolist()])
        return pl.concat(drawn)

    def scan(self, schema: Schema | None = None) -> pl.LazyFrame:
        """All shards of a closed folder as one lazy frame, in order.

        Columns of ``schema`` that a shard of an earlier release lacks are null.

        Raises:
            UserError: a shard is missing or damaged.
        """
        indices = range(self.num_shards)
        for index in indices:
            if not self.is_done(index):
                raise _damaged(self.path(index))
        return pl.scan_parquet(
            [self.path(index) for index in indices],
            glob=False,
            schema=schema,
            missing_columns="raise" if schema is None else "insert",
        )

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Lets only this process change the folder's state in the block; blocks may be nested."""
        if self._holder == get_ident():
            yield
            return
        with changing(self.folder, Inner.SETTINGS, Inner.COMPLETE):
            self._holder = get_ident()
            try:
                yield
            finally:
                self._holder = None

    def begin(self) -> None:
        """Records the settings, so that they are known before the folder is closed."""
        with self.changing():
            write_json(self.folder / Inner.SETTINGS, self.settings)

    def close(self, num_shards: int, **facts: Any) -> None:
        """Marks the folder complete, and records ``facts`` about how it was made."""
        with self.changing():
            written = [self._written(index) for index in range(num_shards)]
            summary = {
                "num_shards": num_shards,
                **facts,
                "contents": fingerprint({"shards": [shard["sha256"] for shard in written]}),
                "versions": self._state_versions([shard["versions"] for shard in written]),
                "settings": self.settings,
            }
            write_json(self.folder / Inner.COMPLETE, summary)

    def reopen(self) -> None:
        """Removes ``complete.json``, so that the folder is no longer closed."""
        with self.changing():
            (self.folder / Inner.COMPLETE).unlink(missing_ok=True)

    def is_begun(self) -> bool:
        """Whether the settings were recorded and are still readable."""
        try:
            return fingerprint(read_json(self.folder / Inner.SETTINGS)) == self.fingerprint
        except (FileNotFoundError, ValueError):
            return False

    def is_closed(self) -> bool:
        """Whether all shards were written once, and what :meth:`close` recorded is whole."""
        try:
            found = self.summary
        except (FileNotFoundError, ValueError):
            return False
        return (
            found.keys() >= CLOSED
            and isinstance(found["num_shards"], int)
            and fingerprint(found["settings"]) == self.fingerprint
        )

    def is_complete(self) -> bool:
        """Whether the folder was closed and every shard is still intact."""
        return self.is_closed() and not self.missing(range(self.num_shards))

    @property
    def summary(self) -> dict[str, Any]:
        """What :meth:`close` recorded."""
        return read_json(self.folder / Inner.COMPLETE)

    @property
    def num_shards(self) -> int:
        return int(self.summary["num_shards"])

    def _marker(self, index: int) -> Path:
        return self.path(index).with_suffix(".done")

    def _written(self, index: int) -> dict[str, Any]:
        """What the shard's marker says."""
        return read_json(self._marker(index))

    def _state_versions(self, made_by: Sequence[dict[str, str]]) -> dict[str, str]:
        """The versions that made the shards; where they differ, each with its number of shards."""
        names = dict.fromkeys(name for versions in made_by for name in versions)
        stated, mixed = {}, []
        for name in names:
            counts = Counter(versions.get(name, "none") for versions in made_by)
            parts = [f"{version} ({count} shards)" for version, count in counts.items()]
            stated[name] = ", ".join(parts) if len(parts) > 1 else next(iter(counts))
            mixed += [f"{name} {stated[name]}"] if len(parts) > 1 else []
        if mixed:
            log.warning("%s: made by different versions: %s", self.folder, "; ".join(mixed))
        return stated


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: missing or damaged; to replace it, repeat the command that made it")
