"""The driver over a fake engine: what it does when workers, weights or rows go wrong."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import polars as pl
import pytest

from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.driver import Driver
from cherry_vllm.workers.pace import Pace
from cherry_vllm.workers.schedule import MAX_TIMEOUTS
from cherry_vllm.workers.work import Made, Piece, Task
from tests.fakes import (
    SCORED,
    FakeEngine,
    Faults,
    InlineExecutor,
    InlineWorker,
    make_shard,
    write_row_shards,
)

SHARD_ROWS, NUM_SHARDS = 4, 6
DEADLY = 9


@dataclass
class Run:
    """Row shards, a model folder and the run's target, with faults to set."""

    folder: Path
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.source = Shards(self.folder / "rows", {})
        write_row_shards(self.source, NUM_SHARDS, SHARD_ROWS)
        self.target = Shards(self.folder / "scores", {})
        self.model = self.folder / "model"
        self.model.mkdir(exist_ok=True)
        (self.model / "config.json").write_text("{}")
        self.write_weights(b"first")

    def write_weights(self, content: bytes) -> None:
        (self.model / "model.safetensors").write_bytes(content)

    def task(self, checkpoint: Checkpoint) -> Task:
        def open_model() -> FakeEngine:
            return FakeEngine(checkpoint, self.faults)

        builder: Any = None  # token ids are made up
        return Task(
            self.source,
            self.target,
            checkpoint,
            lambda: builder,
            open_model,
            "logprobs",
            make_shard,
        )

    def drive(self, executor: InlineExecutor, *, recycle_shards: int = 200) -> Pace:
        self.target.folder.mkdir(parents=True, exist_ok=True)
        indices = range(NUM_SHARDS)
        task = self.task(read_checkpoint(self.model))
        driver = Driver("scoring", task, executor, units_per_row=1, recycle_shards=recycle_shards)
        return driver.run(indices, self.target.missing(indices))

    def results(self) -> pl.DataFrame:
        return pl.concat([self.target.read(index) for index in range(NUM_SHARDS)])

    def is_done(self) -> bool:
        return not self.target.missing(range(NUM_SHARDS))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("num_workers", [1, 3, 9])
def test_any_number_of_workers_makes_the_same_shards(
    num_workers: int, run: Run, tmp_path: Path
) -> None:
    at_work = min(num_workers, NUM_SHARDS)
    barrier, met = Barrier(at_work, timeout=60), set[int]()

    def wait_for_all(slot: int, _piece: Piece) -> None:
        if slot not in met:
            met.add(slot)
            barrier.wait()

    executor = InlineExecutor(num_workers, on_piece=wait_for_all)
    run.drive(executor)
    assert sorted(executor.started) == list(range(at_work))
    other = Run(tmp_path / "other")
    other.drive(InlineExecutor())
    assert run.results().equals(other.results())


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(run: Run) -> None:
    deaths = iter([True, False, True])

    def die(_slot: int, _piece: Piece) -> None:
        if next(deaths, False):
            raise WorkerError("was killed by SIGKILL")

    executor = InlineExecutor(on_piece=die)
    run.drive(executor)
    assert len(executor.started) == 3
    assert run.results()["drop_reason"].is_null().all()


def test_recycling_replaces_a_worker_after_so_many_shards(run: Run) -> None:
    executor = InlineExecutor()
    run.drive(executor, recycle_shards=4)
    assert len(executor.started) == 2
    assert run.is_done()


@pytest.mark.parametrize("num_workers", [0, -1])
def test_a_run_without_workers_does_not_pass_for_done(num_workers: int, run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"part-00000\.parquet: not made by this run"):
        run.drive(InlineExecutor(num_workers))


def test_a_worker_that_says_done_and_wrote_nothing_is_found_out(run: Run) -> None:
    executor = InlineExecutor()

    class Liar:
        def load(self) -> None: ...
        def make(self, piece: Piece, _on_units: Callable[[int], None]) -> Made:
            return Made(piece.num_rows, 0.0, 0.0, 0, 0, 0, None)

        def kill(self) -> None: ...
        def close(self) -> None: ...

    executor.start = lambda _slot, _task: Liar()  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(RuntimeError, match="not made by this run"):
        run.drive(executor)


def test_a_run_tells_its_pace_and_after_the_first_shard_what_is_left(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cherry_vllm.workers.driver.MIN_FORETOLD_S", 0)
    with caplog.at_level(logging.INFO):
        pace = run.drive(InlineExecutor())
    assert pace.num_rows == SHARD_ROWS * NUM_SHARDS
    assert pace.num_tokens == 2 * pace.num_rows
    assert 0 < pace.model_s <= pace.working_s <= pace.seconds
    assert 0 <= pace.share_outside < 1
    assert pace.peak_bytes > 2**20
    assert sum("left, as measured on the first shard" in it for it in caplog.messages) == 1
    assert "tokens/s" in caplog.messages[-1]


# --- rows that kill ------------------------------------------------------------------------------


def test_a_deadly_row_is_dropped_without_an_engine_and_the_rest_is_scored(run: Run) -> None:
    run.faults.deadly_tokens = frozenset([DEADLY])
    executor = InlineExecutor()
    run.drive(executor)
    results = run.results()
    assert results.filter(row=DEADLY).row(0) == (DEADLY, None, "engine_failed")
    rest = results.filter(pl.col("row") != DEADLY)
    assert rest["logprob"].is_not_null().all()
    assert rest["drop_reason"].is_null().all()
    # It died on the shard twice, on a half, and on the row twice. The drop started no sixth.
    assert run.faults.loads == len(executor.started) == 6
    assert dict(run.target.read(DEADLY // SHARD_ROWS).schema) == SCORED


def test_a_deadly_row_that_is_a_whole_shard_is_dropped_without_an_engine(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for index in range(NUM_SHARDS):
        run.source.write(index, pl.DataFrame({"row": [index]}, {"row": pl.Int64}))
    run.faults.deadly_tokens = frozenset([3])
    executor = InlineExecutor()
    run.drive(executor)
    assert run.results()["drop_reason"].to_list() == [None] * 3 + ["engine_failed"] + [None] * 2
    assert len(executor.started) == run.faults.loads == 3  # the first, and one after each loss


def test_an_error_that_every_row_meets_ends_the_run_after_one_start(run: Run) -> None:
    run.faults.deadly_tokens = frozenset(range(100))
    run.faults.error = TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")
    executor = InlineExecutor()
    with pytest.raises(
        UserError, match=r"the engine failed: TypeError: forward\(\) got an .*every"
    ):
        run.drive(executor)
    assert len(executor.started) == 1
    failures = (run.target.folder / "failures.log").read_text()
    assert "logits_to_keep" in failures


def test_an_engine_that_does_not_fit_ends_the_run_after_one_start(run: Run) -> None:
    run.faults.deadly_tokens = frozenset(range(NUM_SHARDS * SHARD_ROWS))
    run.faults.error = RuntimeError("Unsupported CPU attention configuration: head_dim=16")
    executor = InlineExecutor()
    with pytest.raises(UserError, match=r"Unsupported CPU attention .*every row would meet"):
        run.drive(executor)
    assert len(executor.started) == 1


def test_once_it_has_worked_an_unsupported_row_is_dropped_alone(run: Run) -> None:
    run.faults.deadly_tokens = frozenset({DEADLY})
    run.faults.error = RuntimeError("this token is not supported")
    run.drive(InlineExecutor())
    dropped = run.results().filter(pl.col("drop_reason").is_not_null())
    assert dropped.select("row", "drop_reason").rows() == [(DEADLY, "engine_failed")]


def test_a_missing_module_ends_the_run_after_one_start(run: Run) -> None:
    run.faults.load_error = ModuleNotFoundError("No module named 'flash_attn'")
    executor = InlineExecutor()
    with pytest.raises(UserError, match="No module named 'flash_attn'; every row would meet this"):
        run.drive(executor)
    assert len(executor.started) == 1


def test_memory_that_runs_out_once_costs_a_try_and_no_row(run: Run) -> None:
    run.faults.deadly_tokens = frozenset([DEADLY])
    run.faults.error = MemoryError("out of memory")

    def recover(_slot: int, _piece: Piece) -> None:
        if run.faults.loads == 2:
            run.faults.deadly_tokens = frozenset()

    run.drive(InlineExecutor(on_piece=recover))
    assert run.results()["drop_reason"].is_null().all()


# --- slow is not dead ----------------------------------------------------------------------------


def test_a_slow_row_is_never_dropped(run: Run) -> None:
    def be_slow(_slot: int, piece: Piece) -> None:
        if piece.index == 2:
            raise WorkerError("gave no sign of life for 600 s", is_timeout=True)

    executor = InlineExecutor(on_piece=be_slow)
    with pytest.raises(UserError, match=r"no sign of life .*; raise executor.timeout_s"):
        run.drive(executor)
    assert run.target.missing(range(NUM_SHARDS)) == [2]  # the others were made first
    assert len(executor.started) <= MAX_TIMEOUTS + 1
    run.drive(InlineExecutor())  # with a larger timeout
    assert run.results()["drop_reason"].is_null().all()


def test_a_slow_row_that_gets_done_in_twice_the_time_is_scored(run: Run) -> None:
    def be_slow(_slot: int, piece: Piece) -> None:
        if piece.index == 2 and piece.patience < 4:
            raise WorkerError("gave no sign of life for 600 s", is_timeout=True)

    run.drive(InlineExecutor(on_piece=be_slow))
    assert run.results()["drop_reason"].is_null().all()


# --- weights that are replaced -------------------------------------------------------------------


def test_weights_replaced_between_shards_write_no_shard(run: Run) -> None:
    def swap(_slot: int, piece: Piece) -> None:
        if piece.index == 3:
            run.write_weights(b"other")

    with pytest.raises(UserError, match=r"model\.safetensors: has changed since this run began"):
        run.drive(InlineExecutor(on_piece=swap))
    assert run.target.missing(range(NUM_SHARDS)) == [3, 4, 5]


def test_weights_replaced_before_a_recycled_worker_loads_are_refused(run: Run) -> None:
    class Swapping(InlineExecutor):
        def start(self, slot: int, task: Task) -> InlineWorker:
            if self.started:
                run.write_weights(b"other")
            return super().start(slot, task)

    executor = Swapping()
    with pytest.raises(UserError, match=r"model\.safetensors: has changed since this run began"):
        run.drive(executor, recycle_shards=2)
    assert run.faults.loads == 1
    assert run.target.missing(range(NUM_SHARDS)) == [2, 3, 4, 5]


def test_weights_replaced_while_they_load_are_refused(run: Run) -> None:
    class Slow(FakeEngine):
        def __init__(self, checkpoint: Checkpoint, faults: Faults) -> None:
            super().__init__(checkpoint, faults)
            run.write_weights(b"other")

    checkpoint = read_checkpoint(run.model)
    task = run.task(checkpoint)
    object.__setattr__(task, "open_model", lambda: Slow(checkpoint, run.faults))
    run.target.folder.mkdir(parents=True)
    driver = Driver("scoring", task, InlineExecutor(), units_per_row=1, recycle_shards=9)
    with pytest.raises(UserError, match=r"model\.safetensors: has changed since this run began"):
        driver.run(range(NUM_SHARDS), range(NUM_SHARDS))
    assert run.faults.calls == 0
    assert run.target.missing(range(NUM_SHARDS)) == list(range(NUM_SHARDS))


def test_the_log_says_which_row_was_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.faults.deadly_tokens = frozenset([DEADLY])
    with caplog.at_level(logging.WARNING):
        run.drive(InlineExecutor())
    assert f"row {DEADLY}: the engine died twice on this row alone" in caplog.text
