"""A model over all rows: what scoring, embedding and measuring perplexity have in common."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import read_json
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import build_executor
from cherry_vllm.workers.driver import Driver
from cherry_vllm.workers.work import Task, Transform

log = logging.getLogger(__name__)

TransformShard = Callable[..., pl.DataFrame]
"""Called with a frame of rows, whom to tell of progress, ``builder`` and ``model``."""


@dataclass(frozen=True)
class Share:
    """Every ``count``-th shard from ``index`` on: what one of several processes makes."""

    index: int = 0
    count: int = 1

    def check(self) -> None:
        """Raises a UserError if there is no such share."""
        if not 0 <= self.index < self.count:
            raise UserError(
                f"shard.index={self.index} shard.count={self.count}: give a count of at least 1 "
                "and an index from 0 to count - 1"
            )


WHOLE = Share()


class Inference:
    """Row shards through one model, to shards named by all that decides their contents."""

    def __init__(
        self,
        parent: Path,
        rows: Shards,
        checkpoint: Checkpoint,
        *,
        prompt: Prompt,
        max_length: int,
        engine: EngineSettings,
        executor: dict[str, Any],
        trust_remote_code: bool,
        **content: Any,
    ) -> None:
        """``engine`` holds the arguments of
        :func:`engines.build_engine` or :func:`engines.build_embedder`, ``executor`` those of
        :func:`executors.build_executor` and ``recycle_shards``; ``content`` is whatever else
        decides what the shards hold.
        """
        self._rows, self._checkpoint, self._prompt = rows, checkpoint, prompt
        self._limits: dict[str, Any] = {
            "max_length": max_length,
            "trust_remote_code": trust_remote_code,
        }
        self._engine, self._executor = engine, executor
        settings = {
            "schema_version": SCHEMA_VERSION,
            "rows": rows.fingerprint,
            "model": checkpoint.fingerprint,
            "prompt": prompt.as_json(),
            "max_length": max_length,
            "engine": engine.identity(),
            **content,
        }
        self.target = Shards(parent, settings)

    def run(
        self,
        label: str,
        open_model: Callable[..., Any],
        transform_shard: TransformShard,
        *,
        done: str,
        units_per_row: int = 1,
        share: Share = WHOLE,
    ) -> Shards:
        """Makes the shards of ``share`` that are missing, and loads a model only if some are.

        ``open_model`` and ``transform_shard`` are pickled: workers call them. The folder is closed
        if no shard is missing then, be it of another share.

        Raises:
            UserError: the model cannot be used, or cannot take ``max_length`` tokens; the engine
            dies whatever it is given; or the input has changed since its shards were begun.
        """
        target, num_shards = self.target, self._rows.num_shards
        if not target.is_begun():
            self._refuse_changed_input()
            target.begin()
        indices = range(share.index, num_shards, share.count)
        missing = target.missing(indices)
        if missing:
            log.info("loading %s", self._checkpoint.folder)
            open_transform: Callable[[], Transform] = partial(
                ModelTransform,
                transform_shard,
                partial(open_span_builder, self._checkpoint, prompt=self._prompt, **self._limits),
                partial(open_model, self._engine, self._checkpoint, **self._limits),
            )
            settings = dict(self._executor)
            recycle_shards = settings.pop("recycle_shards")
            Driver(
                label,
                Task(self._rows, target, open_transform),
                build_executor(engine=self._engine, **settings),
                units_per_row=units_per_row,
                recycle_shards=recycle_shards,
            ).run(indices, missing)
        if target.is_closed() and not missing:
            log.info("%s: %s before, nothing to do", target.folder, done)
        elif not target.missing(set(range(num_shards)).difference(indices)):
            versions = installed_versions()
            target.close(num_shards, model=str(self._checkpoint.folder), versions=versions)
        return target

    def _refuse_changed_input(self) -> None:
        """Raises a UserError if a file was scored here when it had other contents."""
        files = _files_of(self._rows.folder)
        for begun in sorted(self.target.folder.parent.glob("*/settings.json")):
            before = _files_of(self._rows.folder.parent / read_json(begun)["rows"])
            for file in files.keys() & before.keys():
                if files[file] != before[file]:
                    raise UserError(
                        f"{file}: changed since this run began; put the file back to go on, or "
                        "give the changed one a run_dir of its own"
                    )


def _files_of(rows: Path) -> dict[Path, Any]:
    """The input files of a folder of row shards, and what its settings say of each."""
    closed = rows / "complete.json"
    if not closed.is_file():
        return {}
    summary = read_json(closed)
    return {
        Path(file).resolve(): content
        for file, content in zip(summary["files"], summary["settings"]["files"], strict=True)
    }


class ModelTransform:
    """A shard function with its span builder and its model, whose time it takes."""

    def __init__(
        self,
        transform_shard: TransformShard,
        open_builder: Callable[[], SpanBuilder],
        open_model: Callable[[], Any],
    ) -> None:
        """Loads both.

        Raises:
            UserError: the model cannot be used.
        """
        builder = open_builder()
        self._clock = _Clock(open_model())
        self._transform = partial(transform_shard, builder=builder, model=self._clock)

    def __call__(self, rows: pl.DataFrame, on_units: Callable[[int], None]) -> pl.DataFrame:
        return self._transform(rows, on_units)

    @property
    def model_seconds(self) -> float:
        """How long the model's calls have taken so far."""
        return self._clock.seconds


class _Clock:
    """Stands before a model and adds up how long its calls take."""

    def __init__(self, model: Any) -> None:
        self._model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._model, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.monotonic()
            try:
                return method(*arguments, **keywords)
            finally:
                self.seconds += time.monotonic() - started

        return timed
