"""``score`` over a fake engine: what a run states, what it replaces, and what it leaves."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.sample import sample
from cherry_vllm.commands.score import draw, score
from cherry_vllm.commands.select import select, select_from
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.reporting.artifacts import find_selection
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store import shards
from cherry_vllm.store.marks import mark_path
from cherry_vllm.store.run_folder import File
from cherry_vllm.store.scores import open_scores
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers import WorkerError
from cherry_vllm.workers.work import Piece
from tests import fakes, made_up
from tests.runs import plain_answer, write_rows

NUM_ROWS, SHARD_ROWS = 12, 4


class Scoring:
    """Runs of ``score`` on the same rows and model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.faults = folder / "run", fakes.Faults()
        self._data = write_rows(folder / "rows.jsonl", [plain_answer(n) for n in range(NUM_ROWS)])
        self._model = fakes.write_checkpoint(folder / "model")
        self.executor = fakes.install(monkeypatch, faults=self.faults)

    def run(self, *more: str, stage: Callable[..., Any] = score) -> None:
        words = [f"run_dir={self.run_dir}", f"shard_rows={SHARD_ROWS}", "max_length=96"]
        words += [f"data.path={self._data}", f"model.path={self._model}", "engine=hf", *more]
        stage(compose(*words), Job(self.run_dir, is_sweep=False))

    def stop_at(self, index: int) -> None:
        """Ends the next run at this shard, as an interrupt would."""

        def stop(_slot: int, piece: Piece) -> None:
            if piece.index == index:
                self.executor.on_piece = lambda _slot, _piece: None
                raise KeyboardInterrupt

        self.executor.on_piece = stop
        with pytest.raises(KeyboardInterrupt):
            self.run()


@pytest.fixture
def scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scoring:
    return Scoring(tmp_path, monkeypatch)


def test_a_run_resumed_after_an_upgrade_states_both_versions(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shards, "installed_versions", lambda: {"torch": "2.13.0"})
    scoring.stop_at(1)
    monkeypatch.setattr(shards, "installed_versions", lambda: {"torch": "2.14.0"})
    scoring.run()
    manifest = json.loads((scoring.run_dir / "score.json").read_text())
    mixture = "2.13.0 (1 shards), 2.14.0 (2 shards)"
    assert manifest["score"]["versions"] == {"torch": mixture}
    assert manifest["read"]["versions"] == {"torch": "2.13.0"}
    assert sum(f"torch {mixture}" in message for message in caplog.messages) == 1


@pytest.mark.slow
def test_remote_code_is_never_taken_for_none(scoring: Scoring) -> None:
    found = []
    for value in ("false", "true", "false"):
        scoring.run(f"model.trust_remote_code={value}")
        found.append((scoring.faults.calls, open_scores(scoring.run_dir).fingerprint))
    assert [calls for calls, _ in found] == [3, 6, 6]
    assert found[0][1] == found[2][1] != found[1][1]


@pytest.mark.parametrize("name", ["scores.parquet", "score.json", "ifd.png"])
def test_a_file_of_the_users_is_refused_before_anything_is_scored(
    name: str, scoring: Scoring
) -> None:
    scoring.run_dir.mkdir()
    (scoring.run_dir / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists and is not from cherry-vllm"):
        scoring.run()
    assert (scoring.run_dir / name).read_text() == "mine"
    assert scoring.faults.calls == 0


@pytest.mark.parametrize("key", ["run_dir", "scores_dir"])
@pytest.mark.parametrize("inner", ["", "runs/a"])
def test_a_run_within_the_model_folder_is_refused(scoring: Scoring, key: str, inner: str) -> None:
    place = scoring.run_dir.parent / "model" / inner
    with pytest.raises(UserError, match=f"{key}={place}: is in the model folder"):
        scoring.run(f"{key}={place}")
    assert scoring.faults.loads == 0


def test_scores_are_no_input_of_their_own_run(scoring: Scoring) -> None:
    scoring.run()
    source = scoring.run_dir / "scores.parquet"
    before = source.read_bytes()
    with pytest.raises(UserError, match=r"scores\.parquet: `score` writes this file"):
        scoring.run(f"data.path={source}")
    assert source.read_bytes() == before


def test_scores_with_a_column_of_the_users_are_refused(scoring: Scoring) -> None:
    scoring.run()
    source = scoring.run_dir / "scores.parquet"
    pl.read_parquet(source).with_columns(note=pl.lit("mine")).write_parquet(source)
    with pytest.raises(UserError, match=r"scores\.parquet: edited, or not from cherry-vllm"):
        scoring.run()
    assert "note" in pl.read_parquet_schema(source)


def test_the_owner_of_an_earlier_run_is_told_once(
    scoring: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    Shards(scoring.run_dir / "logprobs", {"schema_version": SCHEMA_VERSION - 1}).close(0)
    for _ in range(2):
        scoring.run()
    assert sum("of an earlier cherry-vllm" in message for message in caplog.messages) == 1


def test_what_a_kill_left_is_gone_after_the_next_run(scoring: Scoring) -> None:
    scoring.stop_at(1)
    token = "node-1-0123abcd"  # of a process that was killed
    folders = [*scoring.run_dir.glob("rows/*"), *scoring.run_dir.glob("logprobs/*")]
    left = [
        scoring.run_dir / f".scores.{token}.tmp.parquet",
        scoring.run_dir / f".score.{token}.tmp.json",
        scoring.run_dir / f".ifd.{token}.tmp.png",
        *(folder / f".complete.{token}.tmp.json" for folder in folders),
        *(folder / f".settings.{token}.tmp.json" for folder in folders),
        folders[1] / f".part-00002.{token}.tmp.parquet",
        folders[1] / f".part-00002.{token}.tmp.done",
    ]
    for path in left:
        path.write_text("half")
    scoring.run()
    assert [path for path in left if path.exists()] == []


def test_scores_in_a_linked_folder_are_selected_from(scoring: Scoring, tmp_path: Path) -> None:
    (tmp_path / "big" / "disk").mkdir(parents=True)
    scoring.run_dir.mkdir()
    (scoring.run_dir / "scores").symlink_to(tmp_path / "big" / "disk")
    scores_dir = f"scores_dir={scoring.run_dir / 'scores'}"
    scoring.run(scores_dir)
    scoring.run_dir = scoring.run_dir.rename(tmp_path / "moved")
    scores_dir = f"scores_dir={scoring.run_dir / 'scores'}"
    scoring.run(scores_dir, "select.count=1", "select.num_examples=1", stage=select)
    assert len(json.loads((scoring.run_dir / "cherry.json").read_text())) == 1


@pytest.mark.slow
def test_a_pipeline_selects_by_the_scores_that_it_made(scoring: Scoring) -> None:
    scoring.run()
    made = open_scores(scoring.run_dir).fingerprint
    select_by = partial(select_from, scores_dir=scoring.run_dir, scores=made)
    scoring.run("select.count=1", stage=select_by)
    scoring.run("max_length=64")  # of another command
    with pytest.raises(UserError, match=r"scores\.parquet: replaced by another run"):
        scoring.run("select.count=1", stage=select_by)


def test_a_damaged_row_shard_is_refused_by_select_and_made_again_by_score(
    scoring: Scoring,
) -> None:
    scoring.run()
    (shard,) = scoring.run_dir.glob("rows/*/part-00001.parquet")
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet: missing or damaged"):
        scoring.run("select.count=5", stage=select)
    scoring.run()
    assert shard.read_bytes() == whole
    scoring.run("select.count=5", stage=select)


def test_a_shard_that_is_made_again_with_other_values_makes_other_scores(scoring: Scoring) -> None:
    scoring.run()
    before = open_scores(scoring.run_dir).frame
    (folder,) = scoring.run_dir.glob("logprobs/*")
    logprobs = Shards.open(folder)
    logprobs.write(0, logprobs.read(0).with_columns(pl.col("conditioned_logprobs") * 2))
    logprobs.close(3)
    scoring.run()
    after = open_scores(scoring.run_dir).frame
    assert not after["ifd"].equals(before["ifd"])
    # The threshold of s_ifd is of all rows.
    assert after[SHARD_ROWS:].drop("s_ifd").equals(before[SHARD_ROWS:].drop("s_ifd"))


def test_a_share_that_leaves_older_scores_says_so(
    scoring: Scoring, caplog: pytest.LogCaptureFixture
) -> None:
    scoring.run()
    scoring.run("max_length=64", "share.index=0", "share.count=2")
    assert "scores.parquet: still the scores of other settings" in caplog.text


# Holds share 0 of 2 until its input ends, as a `score` with these keys does.
HOLDER = """
import sys
from pathlib import Path
from cherry_vllm.commands.inputs import hold_share
from cherry_vllm.config import compose
with hold_share(compose(f"run_dir={sys.argv[1]}", "share.index=0", "share.count=2")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.process
def test_shares_of_another_count_are_refused_while_one_runs(scoring: Scoring) -> None:
    command = [sys.executable, "-c", HOLDER, str(scoring.run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout
        assert one.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"in use by a run in 2 shares") as refused:
            scoring.run("share.index=0", "share.count=3")
        assert str(one.pid) in str(refused.value)
        assert "\n" not in str(refused.value)
        scoring.run("share.index=1", "share.count=2")
        one.communicate()
    scoring.run("share.index=0", "share.count=3")


def test_the_picture_is_drawn_when_it_is_missing_or_of_other_scores(tmp_path: Path) -> None:
    picture = tmp_path / File.IFD_PICTURE
    made_up.score(tmp_path)
    draw(open_scores(tmp_path))
    first = picture.stat()
    draw(open_scores(tmp_path))
    assert picture.stat().st_mtime_ns == first.st_mtime_ns
    made_up.score(tmp_path, first=0.2)
    draw(open_scores(tmp_path))
    assert picture.stat().st_mtime_ns != first.st_mtime_ns
    picture.unlink()
    draw(open_scores(tmp_path))
    assert picture.is_file()


@pytest.mark.slow
def test_what_was_made_from_failed_rows_is_made_again_once_they_are_scored(
    scoring: Scoring, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_slot: int, piece: Piece) -> None:
        if piece.index == 1 and piece.start == 0 and not piece.is_quarantined:
            raise WorkerError("was killed by SIGKILL")

    sampled = ("sample=difficulty", "sample.count=10")
    scoring.executor.on_piece = fail
    scoring.run()
    scoring.run(*sampled, stage=sample)
    scoring.run("select.fraction=1", stage=select)
    picture, before = scoring.run_dir / File.IFD_PICTURE, open_scores(scoring.run_dir)
    drawn, usable = picture.read_bytes(), before.frame["drop_reason"].null_count()
    assert usable < NUM_ROWS
    scoring.executor.on_piece = lambda _slot, _piece: None
    scoring.run("executor.retry_failed=true")
    after = open_scores(scoring.run_dir)
    assert after.fingerprint == before.fingerprint
    assert picture.read_bytes() != drawn
    assert find_selection(mark_path(scoring.run_dir / "cherry.json"), after) is None
    capsys.readouterr()
    scoring.run(*sampled, stage=sample)
    assert f"{after.frame['drop_reason'].null_count()}\n" in capsys.readouterr().out


def test_a_picture_that_is_not_ours_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made_up.score(tmp_path)
    (tmp_path / File.IFD_PICTURE).write_text("mine", encoding="utf-8")
    draw(open_scores(tmp_path))
    assert (tmp_path / File.IFD_PICTURE).read_text(encoding="utf-8") == "mine"
    assert f"{File.IFD_PICTURE}: not drawn by cherry-vllm, so it is kept" in caplog.text
