"""What a worker does: pieces of row shards to shards of results."""

import io
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.schema import REASON, DropReason
from cherry_vllm.store.shards import Shards


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a row shard: all of it, unless its worker died on it."""

    index: int
    start: int
    stop: int
    num_losses: int = 0  # how many workers it cost
    is_quarantined: bool = False  # a single row, to be dropped instead of given to the engine

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


class Made(NamedTuple):
    """What came of a piece, beside the shard."""

    num_units: int  # of work that the model did
    seconds: float
    model_seconds: float  # of these, in the model's calls
    part: bytes | None  # the result as Parquet, if the piece is not a whole shard


class Transform(Protocol):
    """A frame of rows to a frame of results."""

    @property
    def model_seconds(self) -> float:
        """How long the model's calls have taken so far."""
        ...

    def __call__(self, rows: pl.DataFrame, on_units: Callable[[int], None]) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Task:
    """What all workers of a run share; it is pickled to reach them."""

    source: Shards
    target: Shards
    open_transform: Callable[[], Transform]  # loads the model


class EngineError(Exception):
    """The engine raised; the message is the traceback."""

    @property
    def summary(self) -> str:
        """The line that says what it raised."""
        return "failed: " + str(self).strip().splitlines()[-1]


class Work:
    """A worker's own half: the loaded model, and the pieces that it makes."""

    def __init__(self, task: Task) -> None:
        """Loads the model.

        Raises:
            UserError: it cannot be used.
            EngineError: loading it failed.
        """
        self._task = task
        self._transform: Transform = _blame_engine(task.open_transform)

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """Writes the shard, or returns the part of it that the piece is.

        Raises:
            EngineError: the engine, and not the disk, failed.
        """
        started, before, num_units = time.monotonic(), self._transform.model_seconds, 0

        def count(units: int) -> None:
            nonlocal num_units
            num_units += units
            on_units(units)

        shard = self._task.source.read(piece.index)
        rows = shard[piece.start : piece.stop]
        if piece.is_quarantined:
            rows = rows.with_columns(drop_reason=pl.lit(DropReason.ENGINE_FAILED.value, REASON))
        frame = _blame_engine(self._transform, rows, count)
        part = None
        if rows.height == shard.height:
            self._task.target.write(piece.index, frame)
        else:
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            part = buffer.getvalue()
        seconds = time.monotonic() - started
        return Made(num_units, seconds, self._transform.model_seconds - before, part)


def _blame_engine(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except UserError:
        raise
    except Exception:
        raise EngineError(traceback.format_exc()) from None
