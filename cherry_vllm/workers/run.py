"""Runs a model over all rows: what scoring, embedding and answering have in common."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.engines import compilation
from cherry_vllm.engines.checkpoint import Checkpoint, checkpoint_dtype
from cherry_vllm.engines.settings import EngineSettings, VllmSettings
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
from cherry_vllm.runtime.cpu import lacks_bf16
from cherry_vllm.schema import SCHEMA_VERSION, DropReason
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import build_executor
from cherry_vllm.workers.driver import Driver
from cherry_vllm.workers.local import find_gpus, may_use_gpus
from cherry_vllm.workers.other_runs import (
    refuse_changed_input,
    warn_of_other_dates,
    warn_of_other_shares,
)
from cherry_vllm.workers.pace import Pace
from cherry_vllm.workers.settings import ExecutorSettings, RaySettings
from cherry_vllm.workers.work import MakeShard, Task

log = logging.getLogger(__name__)

CountTokens = Callable[[pl.DataFrame, SpanBuilder], int]
"""Called with a frame of rows: how many tokens the model gets for them."""

COUNTED_ROWS = 512  # of which tokens are counted, to estimate those of all rows

ADVICE = {  # for a model that an engine does not fit
    "vllm_fused": "use engine=vllm or engine=hf",
    "vllm": "use engine=hf",
    "vllm_server": "see the servers' logs",
    "hf": "use engine=vllm",
}


@dataclass(frozen=True)
class Share:
    """The work of one of several processes: every ``count``-th shard from ``index`` on."""

    index: int = 0
    count: int = 1

    def check(self) -> None:
        """Raises a UserError if there is no such share."""
        if not 0 <= self.index < self.count:
            raise UserError(
                f"share.index={self.index} share.count={self.count}: give a count of at least 1 "
                "and an index from 0 to count - 1"
            )


WHOLE = Share()


@dataclass(frozen=True, kw_only=True)
class ModelUse:
    """How a model is run over rows: settings that all such stages share."""

    prompt: Prompt
    max_length: int
    engine: EngineSettings
    executor: ExecutorSettings
    trust_remote_code: bool


class ModelRun:
    """Runs row shards through one model, to shards named by all that decides their contents."""

    def __init__(
        self,
        parent: Path,
        rows: Shards,
        checkpoint: Checkpoint,
        use: ModelUse,
        count_tokens: CountTokens | None = None,
        **content: Any,
    ) -> None:
        """``content`` is whatever else decides the contents of the shards.

        ``count_tokens`` counts what the model gets for a frame of rows: an engine that is open as
        to whether it compiles decides by that, for all shares alike. Without it, it compiles.
        """
        self._rows, self._checkpoint, self._use = rows, checkpoint, use
        self._content, self._decision = content, ""
        self.pace: Pace | None = None  # of the shards that `run` made
        if isinstance(use.engine, VllmSettings) and use.engine.enforce_eager is None:
            engine = self._settle(parent, use.engine, count_tokens)
            self._use = replace(use, engine=engine)
        self._settings = self._settings_with(self.engine)
        self.target = Shards(parent, self._settings)

    @property
    def engine(self) -> EngineSettings:
        """The engine, with nothing left open."""
        return self._use.engine

    def estimate_tokens(self, count_tokens: CountTokens) -> int:
        """The number of tokens that the model gets for all rows, estimated from some of them."""
        sample = self._rows.draw(COUNTED_ROWS, seed=0)
        found = count_tokens(sample, self.open_builder())
        num_rows = sum(map(self._rows.num_rows, range(self._rows.num_shards)))
        return round(found * num_rows / max(1, sample.height))

    def _settle(
        self, parent: Path, engine: VllmSettings, count_tokens: CountTokens | None
    ) -> VllmSettings:
        """The engine as the run began with it; if it has not begun, as is faster for its tokens."""
        ways = [replace(engine, enforce_eager=is_eager) for is_eager in (False, True)]
        if count_tokens is None:
            return ways[0]
        for name in (Inner.COMPLETE, Inner.SETTINGS):
            folders = [parent / fingerprint(self._settings_with(way)) for way in ways]
            begun = [
                it for it, folder in zip(ways, folders, strict=True) if (folder / name).exists()
            ]
            if len(begun) == 1:
                return begun[0]
        try:
            num_tokens = self.estimate_tokens(count_tokens)
        except UserError:
            raise
        except Exception as error:  # of a tokenizer, whose row will be dropped
            log.debug(
                "engine.enforce_eager=auto: compiled, since tokens cannot be counted: %s", error
            )
            return ways[0]
        decision = compilation.decide(
            engine,
            self._checkpoint,
            num_tokens=num_tokens,
            is_on_gpu=may_use_gpus(engine),
            num_devices=max(engine.num_devices, len(find_gpus(engine))),
            num_cores=len(os.sched_getaffinity(0)),
        )
        self._decision = decision.reason
        return decision.settings

    def _settings_with(self, engine: EngineSettings) -> dict[str, Any]:
        """All that decides the contents of the shards that ``engine`` makes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "rows": self._rows.fingerprint,
            "model": self._checkpoint.fingerprint,
            "prompt": self._use.prompt.as_json(),
            "max_length": self._use.max_length,
            "trust_remote_code": self._use.trust_remote_code,  # its code may be another model
            "engine": engine.identity(),
            **self._content,
        }

    def run(
        self,
        label: str,
        open_model: Callable[..., Any],
        method: str,
        make_shard: MakeShard,
        *,
        done: str,
        units_per_row: int = 1,
        share: Share = WHOLE,
    ) -> Shards:
        """Makes the shards of ``share`` that are missing, and loads a model only if some are.

        ``open_model`` and ``make_shard`` are pickled: workers call them, and ``make_shard`` calls
        the model's ``method``. The folder is closed if no shard of any share is missing then.

        Raises:
            UserError: the model cannot be used, or cannot take ``max_length`` tokens; the engine
                dies on anything; or the input or the model has changed since the run began.
        """
        self._begin(share)
        target, num_shards = self.target, self._rows.num_shards
        indices = range(share.index, num_shards, share.count)
        missing = target.missing(indices)
        if self._use.executor.retry_failed:
            missing = sorted(missing + self._take_back_failed(set(indices).difference(missing)))
        if missing:
            task = self._task(open_model, method, make_shard)
            self._drive(label, task, indices, missing, units_per_row)
        with target.changing():
            if target.is_closed() and not missing:
                log.info("%s: %s before, nothing to do", target.folder, done)
            elif not target.missing(range(num_shards)):
                self._checkpoint.verify()
                target.close(num_shards, model=str(self._checkpoint.folder))
            elif share == WHOLE:
                raise UserError(
                    f"{target.folder}: a shard was damaged while the run ended; check the disk and "
                    "give the same command again, which makes the shard again"
                )
        return target

    def _begin(self, share: Share) -> None:
        with self.target.changing():
            if not self.target.is_begun():
                refuse_changed_input(self.target, self._rows)
                warn_of_other_dates(self.target)
                if share != WHOLE:
                    warn_of_other_shares(self.target)
                self.target.begin()
            self._checkpoint = self._checkpoint.settle(self.target.folder)

    @property
    def _limits(self) -> dict[str, Any]:
        return {
            "max_length": self._use.max_length,
            "trust_remote_code": self._use.trust_remote_code,
        }

    def open_builder(self) -> SpanBuilder:
        """The builder of what the model gets for a row."""
        return open_span_builder(self._checkpoint, prompt=self._use.prompt, **self._limits)

    def _task(self, open_model: Callable[..., Any], method: str, make_shard: MakeShard) -> Task:
        limits = self._limits
        return Task(
            self._rows,
            self.target,
            self._checkpoint,
            partial(open_span_builder, self._checkpoint, prompt=self._use.prompt, **limits),
            partial(open_model, self._use.engine, self._checkpoint, **limits),
            method,
            make_shard,
            ADVICE.get(self._use.engine.name, "use another engine"),
        )

    def _drive(
        self, label: str, task: Task, indices: range, missing: Sequence[int], units_per_row: int
    ) -> None:
        """Loads the model, and makes the shards that are missing."""
        engine, executor = self._use.engine, self._use.executor
        folder = self._checkpoint.folder
        if _is_slow_in_bf16(executor, engine, checkpoint_dtype(folder)):
            log.warning(
                "bf16 is slow on this CPU, which has no instructions for it; engine.dtype=float32 "
                "is several times faster, and more exact"
            )
        if self._decision:
            log.info("%s", self._decision)
        log.info("loading %s, which usually takes %s", folder, engine.usual_start)
        driver = Driver(
            label,
            task,
            build_executor(executor, engine),
            units_per_row=units_per_row,
            recycle_shards=executor.recycle_shards,
        )
        self.pace = driver.run(indices, missing)

    def _take_back_failed(self, finished: Iterable[int]) -> list[int]:
        """Unmarks the finished shards that hold rows dropped as engine_failed; returns them."""
        failed = [index for index in finished if _holds_failed(self.target.path(index))]
        if failed:
            self.target.reopen()
        for index in failed:
            self.target.unmark(index)
        return failed


def _is_slow_in_bf16(executor: ExecutorSettings, engine: EngineSettings, saved_in: str) -> bool:
    is_elsewhere = isinstance(executor, RaySettings) or bool(find_gpus(engine))
    return not is_elsewhere and engine.computes_in(saved_in) == "bfloat16" and lacks_bf16()


def _holds_failed(shard: Path) -> bool:
    reasons = pl.read_parquet(shard, columns=["drop_reason"], glob=False)["drop_reason"]
    return bool((reasons == DropReason.ENGINE_FAILED.value).any())
