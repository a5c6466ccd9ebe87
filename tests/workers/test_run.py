"""A model over all rows: what is made, what is refused, and when the folder is closed."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.inputs import model_use
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.engines import compilation
from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.driver import Driver
from cherry_vllm.workers.run import WHOLE, CountTokens, ModelRun, Share
from cherry_vllm.workers.work import Piece
from tests.fakes import FakeEngine, Faults, InlineExecutor, make_shard, write_row_shards

SHARD_ROWS, NUM_SHARDS = 4, 6
DEADLY = 9


class Runs:
    """Runs over the same rows in one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.model, self.faults = folder, folder / "model", Faults()
        self.rows = Shards(folder / "rows", {"files": ["hash"]})
        write_row_shards(self.rows, NUM_SHARDS, SHARD_ROWS)
        self.rows.close(NUM_SHARDS, files=["/data/rows.jsonl"])
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(b"first")
        self.executor = InlineExecutor()
        monkeypatch.setattr(
            "cherry_vllm.workers.run.build_executor", lambda _settings, _engine: self.executor
        )
        monkeypatch.setattr(
            "cherry_vllm.workers.run.open_span_builder", lambda _checkpoint, **_settings: None
        )

    def prepare(self, *overrides: str, count_tokens: CountTokens | None = None) -> ModelRun:
        config = compose(*overrides)
        use = model_use(config, prompt_of(config))
        checkpoint = read_checkpoint(self.model)
        return ModelRun(self.folder / "scores", self.rows, checkpoint, use, count_tokens)

    def run(
        self,
        *overrides: str,
        share: Share = WHOLE,
        count_tokens: CountTokens | None = None,
    ) -> Shards:
        return self.prepare(*overrides, count_tokens=count_tokens).run(
            "scoring", self.open_model, "logprobs", make_shard, done="scored", share=share
        )

    def open_model(self, _engine: Any, checkpoint: Checkpoint, **_limits: Any) -> FakeEngine:
        return FakeEngine(checkpoint, self.faults)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, monkeypatch)


def test_a_second_run_loads_no_model(runs: Runs) -> None:
    assert runs.run().is_complete()
    assert runs.run().is_complete()
    assert runs.faults.loads == 1


def test_a_share_makes_its_own_shards_and_the_last_closes_the_folder(runs: Runs) -> None:
    first = runs.run(share=Share(1, 2))
    assert first.missing(range(NUM_SHARDS)) == [0, 2, 4]
    assert not first.is_closed()
    assert runs.run(share=Share(0, 2)).is_complete()


def test_a_share_that_is_not_there_is_refused() -> None:
    for index, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=rf"share.index={index} share.count={count}: give"):
            Share(index, count).check()


@pytest.mark.slow
def test_rows_dropped_as_engine_failed_are_tried_again_by_one_option(runs: Runs) -> None:
    runs.faults.deadly_tokens = frozenset([DEADLY])
    failed = runs.run()
    before = failed.summary
    assert reasons(failed)[DEADLY] == "engine_failed"
    untouched = {index: failed.path(index).stat().st_mtime_ns for index in range(NUM_SHARDS)}
    del untouched[DEADLY // SHARD_ROWS]
    runs.faults.deadly_tokens = frozenset()
    assert reasons(runs.run())[DEADLY] == "engine_failed"  # not by itself
    again = runs.run("executor.retry_failed=true")
    assert again.fingerprint == failed.fingerprint
    assert again.is_complete()
    assert reasons(again) == [None] * NUM_SHARDS * SHARD_ROWS
    assert again.summary["contents"] != before["contents"]  # so scores are made again
    assert {index: again.path(index).stat().st_mtime_ns for index in untouched} == untouched


def test_rows_that_fail_again_are_dropped_again(runs: Runs) -> None:
    runs.faults.deadly_tokens = frozenset([DEADLY])
    runs.run()
    again = runs.run("executor.retry_failed=true")
    assert again.is_complete()
    assert reasons(again)[DEADLY] == "engine_failed"


def test_a_retry_without_failed_rows_loads_no_model(runs: Runs) -> None:
    runs.run()
    runs.run("executor.retry_failed=true")
    assert runs.faults.loads == 1


def test_a_run_that_is_stopped_while_it_retries_goes_on_without_the_option(runs: Runs) -> None:
    runs.faults.deadly_tokens = frozenset([DEADLY])
    runs.run()
    runs.faults.deadly_tokens = frozenset()

    def stop(_slot: int, _piece: Piece) -> None:
        raise KeyboardInterrupt

    runs.executor = InlineExecutor(on_piece=stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run("executor.retry_failed=true")
    runs.executor = InlineExecutor()
    assert reasons(runs.run())[DEADLY] is None


@pytest.mark.parametrize("moment", ["before the last shard", "after it"])
def test_weights_replaced_before_the_folder_is_closed_leave_it_open(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    drive, is_after = Driver.run, moment == "after it"

    def swap() -> None:
        (runs.model / "model.safetensors").write_bytes(b"other")

    def swap_before(_slot: int, piece: Piece) -> None:
        if piece.index == NUM_SHARDS - 1:
            swap()

    def drive_and_swap(driver: Driver, *indices: Any) -> None:
        drive(driver, *indices)
        swap()

    with monkeypatch.context() as patch:
        if is_after:
            patch.setattr(Driver, "run", drive_and_swap)
        else:
            runs.executor = InlineExecutor(on_piece=swap_before)
        with pytest.raises(UserError, match=r"model\.safetensors: has changed since this run beg"):
            runs.run()
    (folder,) = (runs.folder / "scores").iterdir()
    assert not (folder / "complete.json").exists()
    assert len(list(folder.glob("*.done"))) == NUM_SHARDS - (0 if is_after else 1)
    runs.executor = InlineExecutor()
    assert runs.run().folder != folder  # other weights are another run


def test_a_changed_input_is_refused_until_it_is_put_back(runs: Runs) -> None:
    def die(_slot: int, piece: Piece) -> None:
        if piece.index == 1:
            raise WorkerError("was killed by SIGKILL")

    runs.executor = InlineExecutor(on_piece=die)
    with pytest.raises(UserError, match="8 times in a row"):
        runs.run()
    original = runs.rows
    runs.rows = Shards(runs.folder / "rows", {"files": ["another hash"]})
    runs.rows.write(0, pl.DataFrame({"row": [0]}, {"row": pl.Int64}))
    runs.rows.close(1, files=["/data/rows.jsonl"])
    runs.executor = InlineExecutor()
    with pytest.raises(UserError, match=r"rows\.jsonl: changed since this run began"):
        runs.run()
    runs.rows = original
    assert runs.run().is_complete()


def test_a_relative_path_on_record_is_no_changed_input(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.rows.close(NUM_SHARDS, files=["rows.jsonl"])  # as runs recorded it in another folder
    runs.run()
    runs.rows = Shards(runs.folder / "rows", {"files": ["another hash"]})
    runs.rows.write(0, pl.DataFrame({"row": [0]}, {"row": pl.Int64}))
    runs.rows.close(1, files=[str(tmp_path / "rows.jsonl")])
    assert runs.run().is_complete()


def test_a_run_begun_with_another_date_is_named(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    begun = runs.run("prompt=chat", "prompt.date=2026-01-31")
    assert "another date" not in caplog.text
    runs.run("prompt=chat", "prompt.date=2026-02-01", "max_length=64")
    assert "another date" not in caplog.text
    again = runs.run("prompt=chat", "prompt.date=2026-02-01")
    assert again.fingerprint != begun.fingerprint
    assert f"{begun.folder}: begun with prompt.date=2026-01-31, which resumes" in caplog.text


def test_a_share_with_other_settings_than_an_unfinished_run_is_told(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    first = runs.run("max_length=64", share=Share(0, 2))
    runs.run("max_length=64", share=Share(0, 2))
    assert "not finished" not in caplog.text
    runs.run("max_length=96", share=Share(1, 2))
    assert f"{first.folder}: begun with another max_length and not finished" in caplog.text


@pytest.mark.parametrize("content", [{}, {"prompt": None}, {"rows": []}])
def test_settings_of_another_run_that_were_damaged_are_no_obstacle(
    runs: Runs, content: dict[str, Any]
) -> None:
    begun = runs.run("max_length=64")
    write_json(begun.folder / "settings.json", content)
    assert runs.run("max_length=96").is_complete()


@pytest.mark.parametrize(
    "content",
    [
        {"num_shards": None, "settings": {}},
        {"num_shards": 1, "settings": {}},
        {"num_shards": "x"},
        {},
    ],
)
def test_a_folder_whose_closing_was_damaged_is_closed_again(
    runs: Runs, content: dict[str, Any]
) -> None:
    closed = runs.run()
    before = read_json(closed.folder / "complete.json")
    write_json(closed.folder / "complete.json", content)
    assert runs.run().is_complete()
    assert read_json(closed.folder / "complete.json") == before
    assert runs.faults.loads == 1


def test_a_run_that_lost_a_shard_by_its_end_does_not_pass_for_done(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = Driver.run

    def damage(driver: Driver, *indices: Any) -> None:
        drive(driver, *indices)
        (first,) = (runs.folder / "scores").glob("*/part-00000.parquet")
        first.write_bytes(b"")

    monkeypatch.setattr(Driver, "run", damage)
    with pytest.raises(UserError, match="a shard was damaged while the run ended"):
        runs.run()


def test_executor_settings_are_no_part_of_a_fingerprint(runs: Runs) -> None:
    plain = runs.run()
    other = runs.run("executor=ray", "executor.num_workers=2", "executor.timeout_s=5")
    assert other.fingerprint == plain.fingerprint


# --- whether it compiles ------------------------------------------------------------------------

PER_ROW = 1000


@pytest.fixture
def parameters(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The size of the model, which a test may change."""
    size = [1e6]
    monkeypatch.setattr(compilation, "count_parameters", lambda _checkpoint: size[0])
    return size


def count(rows: pl.DataFrame, _builder: object) -> int:
    return PER_ROW * rows.height


def test_a_small_run_does_not_compile_and_says_so_in_one_line(
    runs: Runs, parameters: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        made = runs.run(count_tokens=count)
        runs.run(count_tokens=count)
    assert made.fingerprint == runs.prepare("engine.enforce_eager=true").target.fingerprint
    tokens = PER_ROW * NUM_SHARDS * SHARD_ROWS
    (line,) = [it for it in caplog.messages if "enforce_eager" in it]
    assert f"auto: not compiled, since about {tokens:,} tokens" in line
    parameters[0] = 1e12
    large = runs.prepare("max_length=64", count_tokens=count).target
    as_told = runs.prepare("max_length=64", "engine.enforce_eager=false").target
    assert large.fingerprint == as_told.fingerprint


@pytest.mark.parametrize("is_eager", [False, True])
@pytest.mark.parametrize("share", [Share(0, 2), WHOLE])
def test_a_run_goes_on_as_it_began_whatever_would_be_decided_now(
    *, is_eager: bool, share: Share, runs: Runs, parameters: list[float]
) -> None:
    begun = runs.run(f"engine.enforce_eager={is_eager}", share=share)
    for size in (1e6, 1e12):
        parameters[0] = size
        assert runs.prepare(count_tokens=count).target.fingerprint == begun.fingerprint
    assert runs.run(share=Share(1, 2), count_tokens=count).is_complete()


def test_of_two_runs_the_finished_one_is_found_again(runs: Runs, parameters: list[float]) -> None:
    runs.run("engine.enforce_eager=false", share=Share(0, 2))
    finished = runs.run("engine.enforce_eager=true")
    parameters[0] = 1e12
    assert runs.run(count_tokens=count).fingerprint == finished.fingerprint


@pytest.mark.slow
def test_tokens_are_estimated_from_rows_of_all_shards(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cherry_vllm.workers.run.COUNTED_ROWS", 6)
    seen = list[int]()

    def count_and_keep(rows: pl.DataFrame, _builder: object) -> int:
        seen.extend(rows["row"])
        return 10 * rows.height

    run = runs.prepare()
    assert run.estimate_tokens(count_and_keep) == 10 * NUM_SHARDS * SHARD_ROWS
    assert sorted(row // SHARD_ROWS for row in seen) == list(range(NUM_SHARDS))


def reasons(shards: Shards) -> list[str | None]:
    return pl.concat([shards.read(index) for index in range(NUM_SHARDS)])["drop_reason"].to_list()
