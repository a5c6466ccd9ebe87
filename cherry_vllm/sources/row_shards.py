"""Files to row shards in the run folder: ``run_dir/rows/FINGERPRINT/``."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import Turns
from cherry_vllm.runtime.processes import ChildError, isolate
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.sources import Columns, Layout, read_rows
from cherry_vllm.store.hashes import file_sha256, fingerprint
from cherry_vllm.store.run_folder import Folder
from cherry_vllm.store.shards import Shards

READING = 2  # part of the fingerprint of rows: raise it when the same file is read in another way

log = logging.getLogger(__name__)


def read_row_shards(
    run_dir: Path,
    files: Sequence[Path],
    *,
    columns: Columns,
    layout: Layout = Layout(),
    refusals: Sequence[str],
    turns: Turns = Turns.all,
    max_rows: int | None = None,
    shard_rows: int,
) -> Shards:
    """Files to row shards. See :func:`sources.read_rows` for the arguments.

    Raises:
        UserError: a file cannot be read, or changes while it is read.
    """
    states = [_state(file) for file in files]
    settings = {
        "schema_version": SCHEMA_VERSION,
        "reading": READING,
        "files": [[file_sha256(file), *file.suffixes] for file in files],
        "layout": asdict(layout) | {"format": layout.format.value},
        "columns": asdict(columns),
        "refusals": list(refusals),
        "turns": turns.value,
        "max_rows": max_rows,
        "shard_rows": shard_rows,
    }
    frames = partial(
        read_rows,
        files,
        columns=columns,
        layout=layout,
        refusals=refusals,
        turns=turns,
        max_rows=max_rows,
        batch_rows=shard_rows,
    )
    rows = Shards(run_dir / Folder.ROWS, settings)
    with rows.changing():
        # If a folder was never closed, its file may have changed while it was read.
        missing = rows.missing(range(rows.num_shards)) if rows.is_closed() else None
        if missing == []:
            for line in rows.summary.get("warnings", []):
                log.warning(line)
            return rows
        rows.reopen()
        num_rows, num_shards, warnings = _write_apart(rows, missing, frames, files)
        _refuse_changed(files, states)
        rows.close(
            num_shards,
            num_rows=num_rows,
            files=[str(file.absolute()) for file in files],
            warnings=warnings,
        )
    return rows


def name_data(settings: dict[str, Any]) -> str:
    """Names the data and texts that rows stand for, given the settings of its row shards."""
    return fingerprint({key: settings.get(key) for key in ("files", "layout", "columns", "turns")})


def _write_apart(
    rows: Shards,
    wanted: Sequence[int] | None,
    frames: Callable[[], Iterator[pl.DataFrame]],
    files: Sequence[Path],
) -> tuple[int, int, list[str]]:
    """:func:`write_rows` in a child process, which Polars may end on a damaged file."""
    try:
        return isolate(write_rows, rows, wanted, frames)
    except ChildError as lost:
        names = ", ".join(map(str, files))
        raise UserError(
            f"{names}: not readable, the reader {lost}; check that the file is complete"
        ) from None


def write_rows(
    rows: Shards, wanted: Sequence[int] | None, frames: Callable[..., Iterator[pl.DataFrame]]
) -> tuple[int, int, list[str]]:
    """Writes frames to row shards; if ``wanted`` is not None, only to those shards.

    Returns the number of rows and of shards, and the warnings that were given.
    """
    warnings: list[str] = []

    def tell(line: str) -> None:
        log.warning(line)
        warnings.append(line)

    num_rows = num_shards = 0
    with Progress("reading") as bar:
        for frame in frames(tell=tell):
            if wanted is None or num_shards in wanted:
                rows.discard(num_shards)
                rows.write(num_shards, frame)
            num_rows, num_shards = num_rows + frame.height, num_shards + 1
            bar.update(frame.height)
    return num_rows, num_shards, warnings


def _refuse_changed(files: Sequence[Path], states: Sequence[tuple[int, int, int]]) -> None:
    """Raises a UserError for a file that is not in the state that it was in."""
    for file, state in zip(files, states, strict=True):
        if _state(file) != state:
            raise UserError(
                f"{file}: changed while it was read; run again once nothing writes to it"
            )


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
