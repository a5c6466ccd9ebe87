"""What a worker does: it turns pieces of row shards into shards of results."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.engines import Continuation, Span
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.runtime.memory import peak_bytes, peak_gpu_bytes
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.failures import MEETS_EVERY_ROW, EngineError, blame_engine

MakeShard = Callable[..., pl.DataFrame]
"""Called with a frame of rows, a function that counts units of work, and two keyword arguments:
``builder``, the span builder, and ``model``, the model's method for this work."""


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a row shard: all of it, unless its worker died on it."""

    index: int
    start: int
    stop: int
    num_losses: int = 0  # how many workers died on it
    num_timeouts: int = 0  # how often it timed out
    is_quarantined: bool = False  # a single row, to be dropped instead of given to an engine

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def patience(self) -> int:
        """The factor of the timeout for this piece: it doubles each time the piece times out."""
        return int(2**self.num_timeouts)


class Made(NamedTuple):
    """The result of a piece, in addition to the shard that was written."""

    num_units: int  # of work that the model did
    seconds: float
    model_seconds: float  # the part of them that was spent in calls of the model
    num_tokens: int  # that the model got
    peak_bytes: int  # of main memory, so far
    peak_gpu_bytes: int  # of the worker's GPU, so far; 0 without one
    part: bytes | None  # the result as Parquet, if the piece is not a whole shard


@dataclass(frozen=True)
class Task:
    """What all workers of a run share; it is pickled to reach them."""

    source: Shards
    target: Shards
    checkpoint: Checkpoint
    open_builder: Callable[[], SpanBuilder]
    open_model: Callable[[], Any]  # loads the model
    method: str  # of the model, which does the work
    make_shard: MakeShard
    advice: str = "use another engine"  # if this one does not fit the model


class Work:
    """Runs inside a worker: holds the loaded model and makes pieces with it."""

    def __init__(self, task: Task) -> None:
        """Loads the model.

        Raises:
            UserError: it cannot be used, or its files changed since the run began.
            EngineError: loading it failed.
        """
        installed_versions()  # cached now, since an upgrade may come while the worker lives
        self._task = task
        task.checkpoint.verify()
        try:
            self._builder = task.open_builder()
            self._model = ModelCall(getattr(task.open_model(), task.method))
        except UserError:
            raise
        except Exception as error:
            raise blame_engine(error) from None
        task.checkpoint.verify()  # what was loaded is what was named

    def make(self, piece: Piece, on_units: Callable[[int], None]) -> Made:
        """Writes the shard if the piece is a whole one, else returns its part in the result.

        Raises:
            UserError: the model's files changed since the run began.
            EngineError: the engine failed. Errors of the disk are raised as they are.
        """
        started, num_units = time.monotonic(), 0
        model_s, num_tokens = self._model.seconds, self._model.num_tokens

        def count(units: int) -> None:
            nonlocal num_units
            num_units += units
            on_units(units)

        shard = self._task.source.read(piece.index)
        rows = shard[piece.start : piece.stop]
        try:
            frame = self._task.make_shard(rows, count, builder=self._builder, model=self._model)
        except (UserError, EngineError, *MEETS_EVERY_ROW):  # the last are our own mistakes
            raise
        except Exception as error:  # a tokenizer's, for example
            raise blame_engine(error) from None
        self._task.checkpoint.verify()  # weights may be read from their file as they are needed
        part = None
        if rows.height == shard.height:
            self._task.target.write(piece.index, frame)
        else:
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            part = buffer.getvalue()
        return Made(
            num_units,
            time.monotonic() - started,
            self._model.seconds - model_s,
            self._model.num_tokens - num_tokens,
            peak_bytes(),
            peak_gpu_bytes(),
            part,
        )


class ModelCall:
    """A model's method that measures its work and turns what it raises into an EngineError."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method, self.seconds, self.num_tokens = method, 0.0, 0

    def __call__(
        self, sequences: Sequence[Span | list[int]], *arguments: Any, **keywords: Any
    ) -> Any:
        started = time.monotonic()
        self.num_tokens += sum(
            len(it.token_ids if isinstance(it, Span) else it) for it in sequences
        )
        try:
            found = self._method(sequences, *arguments, **keywords)
            if found and isinstance(found[0], Continuation):
                self.num_tokens += sum(len(it.token_ids) for it in found)
            return found
        except UserError:
            raise
        except Exception as error:
            raise blame_engine(error) from None
        finally:
            self.seconds += time.monotonic() - started
