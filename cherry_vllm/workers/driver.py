"""The driver: hands pieces to workers, replaces those that die, and keeps count."""

import io
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Condition, Thread

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.runtime.text import rough_time
from cherry_vllm.schema import DropReason
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.workers import Executor, Worker, WorkerError
from cherry_vllm.workers.pace import Pace
from cherry_vllm.workers.schedule import Schedule
from cherry_vllm.workers.work import Made, Piece, Task

log = logging.getLogger(__name__)

MIN_FORETOLD_S = 10  # less is not worth a line
WAIT_S = 0.5  # between two checks for signals, which do not interrupt a wait under some handlers


class Driver:
    """Makes shards with an executor's workers; one thread waits for each worker."""

    def __init__(
        self, label: str, task: Task, executor: Executor, *, units_per_row: int, recycle_shards: int
    ) -> None:
        """``recycle_shards`` is how many pieces a worker makes before a new one takes its place."""
        self._label, self._task, self._executor = label, task, executor
        self._units_per_row, self._recycle_shards = units_per_row, recycle_shards
        self._changed = Condition()
        self._workers: dict[int, Worker] = {}
        self._is_loaded = self._is_stopped = False
        self._error: BaseException | None = None
        self._rows_done, self._rows_under_way = 0, dict[int, int]()
        self._parts: dict[int, dict[int, pl.DataFrame]] = defaultdict(dict)
        self._made: list[Made] = []  # without their parts
        self._load_s = 0.0

    def run(self, indices: Sequence[int], missing: Sequence[int]) -> Pace:
        """Makes the shards ``missing``; the progress bar covers all those at ``indices``.

        Raises:
            UserError: the model cannot be used, the engine dies on anything, or a piece times out
                again and again.
            OSError: a shard cannot be written.
        """
        heights = {index: self._task.source.num_rows(index) for index in indices}
        self._total = total = sum(heights.values())
        num_rows = sum(heights[index] for index in missing)
        self._rows_done = total - num_rows
        if self._rows_done:
            log.info("%s: %d of %d rows are done already", self._label, self._rows_done, total)
        num_workers = self._num_workers = min(self._executor.num_workers, len(missing))
        self._schedule = Schedule((Piece(i, 0, heights[i]) for i in missing), num_workers)
        threads = [
            Thread(target=self._serve, args=(slot,), daemon=True) for slot in range(num_workers)
        ]
        self._discard(missing)  # what a killed run left
        started = time.monotonic()
        with Progress(self._label, total=total, initial=self._rows_done) as self._progress:
            try:
                for thread in threads:
                    thread.start()
                _join_all(threads)
            finally:  # also after Ctrl-C
                self._stop(None)
                _join_all([thread for thread in threads if thread.ident])
                self._discard(missing)
        if self._error:
            raise self._error
        self._check_done(missing)
        pace = self._sum_up(num_rows, time.monotonic() - started)
        log.info(
            "%s: %d rows in %.1f s including the engine's start; without it %.1f rows/s, "
            "%.0f tokens/s, %.1f%% of that time outside the engine",
            *(self._label, num_rows, pace.seconds),
            *(pace.rows_per_s, pace.tokens_per_s, 100 * pace.share_outside),
        )
        return pace

    def _serve(self, slot: int) -> None:
        """Runs in a thread: one worker after another in the same slot."""
        num_made = 0
        try:
            while piece := self._take():
                if piece.is_quarantined:
                    self._drop(piece)
                    continue
                try:
                    if slot not in self._workers:
                        self._start(slot)
                        num_made = 0
                    made = self._workers[slot].make(piece, partial(self._advance, slot))
                except WorkerError as lost:
                    self._lose(slot, piece, lost)
                    continue
                self._keep(slot, piece, made)
                num_made += 1
                if num_made == self._recycle_shards:
                    self._close(slot)
        except BaseException as error:
            self._stop(error)
        finally:
            self._close(slot)

    def _take(self) -> Piece | None:
        with self._changed:
            while not (self._is_stopped or self._schedule.is_over):
                if piece := self._schedule.take():
                    return piece
                self._changed.wait()
            return None

    def _start(self, slot: int) -> None:
        with self._changed:
            worker = self._executor.start(slot, self._task)
            self._workers[slot] = worker
            if self._is_stopped:
                worker.kill()
        started = time.monotonic()
        worker.load()
        with self._changed:
            self._schedule.loaded()
            if not self._is_loaded:
                self._load_s = time.monotonic() - started
                log.info("loaded in %.0f s", self._load_s)
                self._is_loaded = True
                self._progress.start()

    def _advance(self, slot: int, num_units: int) -> None:
        with self._changed:
            self._rows_under_way[slot] = self._rows_under_way.get(slot, 0) + num_units
            self._show()

    def _keep(self, slot: int, piece: Piece, made: Made) -> None:
        with self._changed:
            if made.part is not None:
                self._join(piece.index, piece.start, pl.read_parquet(io.BytesIO(made.part)))
            self._made.append(made._replace(part=None))
            self._rows_under_way.pop(slot, None)
            self._finish(piece, made.num_units)
            if len(self._made) == 1:
                self._foretell(piece, made)

    def _drop(self, piece: Piece) -> None:
        """Drops a row on which the engine died; no engine is needed."""
        with self._changed:
            row = self._task.source.read(piece.index)["row"][piece.start]
            log.warning(
                "row %d: the engine died twice on this row alone; dropped as %s "
                "(executor.retry_failed=true tries it again)",
                row,
                DropReason.ENGINE_FAILED,
            )
            line = {"row": row, "drop_reason": DropReason.ENGINE_FAILED.value}
            self._join(piece.index, piece.start, pl.DataFrame([line], schema=self._schema))
            self._finish(piece, 0)

    def _finish(self, piece: Piece, num_units: int) -> None:
        self._schedule.made(num_units)
        self._rows_done += piece.num_rows
        self._show()
        self._changed.notify_all()

    @property
    def _schema(self) -> pl.Schema:
        """The columns of the results, taken from any of them.

        There is at least one: a row is quarantined only after the engine has done other rows.
        """
        for parts in self._parts.values():
            for part in parts.values():
                return part.schema
        return pl.read_parquet(self._task.target.written()[0], glob=False, n_rows=0).schema

    def _join(self, index: int, start: int, part: pl.DataFrame) -> None:
        """Keeps a part of a halved shard, and writes the shard once it has all parts."""
        parts = self._parts[index]
        parts[start] = part
        if sum(frame.height for frame in parts.values()) == self._task.source.num_rows(index):
            whole = pl.concat([parts[position] for position in sorted(parts)])
            self._task.target.write(index, whole)
            del self._parts[index]

    def _lose(self, slot: int, piece: Piece, lost: WorkerError) -> None:
        if slot in self._workers:
            self._workers[slot].kill()  # it may hang
        self._close(slot)
        with self._changed:
            self._rows_under_way.pop(slot, None)
            self._task.target.discard(piece.index)
            if not self._is_stopped:
                self._record(piece, lost)
                self._decide(piece, lost)
            self._show()
            self._changed.notify_all()

    def _decide(self, piece: Piece, lost: WorkerError) -> None:
        if lost.meets_every_row or (lost.is_unsupported and not self._schedule.engine_works):
            raise UserError(
                f"the engine {lost}; every row would meet this: {self._task.advice} "
                f"(details: {self._failures})"
            )
        if lost.while_loading:
            self._schedule.not_loaded(piece, str(lost))
        elif self._task.target.is_done(piece.index):  # it died after writing the shard
            self._schedule.made(0)
            self._rows_done += piece.num_rows
        elif lost.is_timeout:
            self._schedule.timed_out(piece, str(lost))
        else:
            self._schedule.lost(piece, str(lost))

    @property
    def _failures(self) -> Path:
        return self._task.target.folder / Inner.FAILURES

    def _record(self, piece: Piece, lost: WorkerError) -> None:
        rows = self._task.source.read(piece.index)["row"]
        span = f"rows {rows[piece.start]} to {rows[piece.stop - 1]}"
        place = "before its model was loaded" if lost.while_loading else f"on {span}"
        log.warning("the engine %s, %s", lost, place)
        with self._failures.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%F %T')} the engine {lost}, {place}\n{lost.detail}")

    def _close(self, slot: int) -> None:
        with self._changed:
            worker = self._workers.pop(slot, None)
        if worker:
            worker.close()

    def _stop(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = self._error or error
            self._is_stopped = True
            for worker in self._workers.values():
                worker.kill()
            self._changed.notify_all()

    def _show(self) -> None:
        # The bar goes back by the rows that a lost worker had under way.
        under_way = sum(units // self._units_per_row for units in self._rows_under_way.values())
        self._progress.reach(self._rows_done + under_way)

    def _check_done(self, indices: Sequence[int]) -> None:
        if left := set(indices).difference(self._task.target.marked(indices)):
            raise RuntimeError(f"{self._task.target.path(min(left))}: not made by this run")

    def _discard(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._task.target.discard(index)

    def _foretell(self, piece: Piece, made: Made) -> None:
        """Says how long the rest will take, as measured on the first shard."""
        per_row = made.seconds / piece.num_rows / self._num_workers
        left_s = per_row * (self._total - self._rows_done)
        if left_s >= MIN_FORETOLD_S:
            log.info(
                "%s: about %s left, as measured on the first shard",
                *(self._label, rough_time(left_s)),
            )

    def _sum_up(self, num_rows: int, seconds: float) -> Pace:
        made = self._made
        return Pace(
            num_rows=num_rows,
            num_tokens=sum(it.num_tokens for it in made),
            num_workers=self._num_workers,
            seconds=seconds,
            load_s=self._load_s,
            working_s=sum(it.seconds for it in made),
            model_s=sum(it.model_seconds for it in made),
            peak_bytes=max((it.peak_bytes for it in made), default=0),
            peak_gpu_bytes=max((it.peak_gpu_bytes for it in made), default=0),
        )


def _join_all(threads: Sequence[Thread]) -> None:
    for thread in threads:
        while thread.is_alive():
            thread.join(WAIT_S)
