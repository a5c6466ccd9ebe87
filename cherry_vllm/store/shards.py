"""Shards with completion markers."""

import hashlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.store.files import (
    ROW_GROUP_ROWS,
    atomic_path,
    file_sha256,
    fingerprint,
    read_json,
    write_json,
)

log = logging.getLogger(__name__)


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

    def marked(self, indices: Iterable[int]) -> list[int]:
        """Those of the shards that have a marker, whatever their data are now."""
        # A file system that nodes share shows what another node wrote once the folder is listed.
        found = {path.stem for path in self.folder.glob("part-*.done")}
        return [index for index in indices if self.path(index).stem in found]

    def unmark(self, index: int) -> None:
        """Takes a shard's marker away, so that it is made again."""
        self.path(index).with_suffix(".done").unlink(missing_ok=True)

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
