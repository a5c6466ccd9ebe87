"""Scores and their manifest: one state, read at one moment, whatever else happens."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from cherry_vllm.errors import UserError
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.run_folder import File
from cherry_vllm.store.scores import (
    OF_FILE,
    Scores,
    changing_scores,
    check_scores_dir,
    open_scores,
    refuse_as_input,
    scores_fingerprint,
    write_scores,
)
from cherry_vllm.store.shards import Shards
from tests import made_up

FRAME = made_up.scores(0.1, 0.2, 0.3, None, 1.5)


def number_of(name: str) -> pl.Expr:
    """A column that tells frames of different names apart."""
    return pl.lit(crc32(name.encode()), pl.UInt32)


def assert_made_by(scores: Scores) -> None:
    """The frame is the one that the manifest describes."""
    assert_frame_equal(
        scores.frame, FRAME.with_columns(num_answer_tokens=number_of(scores.fingerprint))
    )


def manifest(name: str) -> dict[str, Any]:
    return {"fingerprint": name, "num_rows": 5, "outcomes": {}, "read": {}, "score": {}}


def write(scores_dir: Path, name: str = "one", rows: Path | None = None) -> None:
    frame = FRAME.with_columns(num_answer_tokens=number_of(name))
    with changing_scores(scores_dir):
        write_scores(scores_dir, frame, rows or scores_dir / "rows" / "01", manifest(name))


def test_scores_carry_their_manifest(tmp_path: Path) -> None:
    write(tmp_path)
    scores = open_scores(tmp_path)
    assert_made_by(scores)
    expected = {**manifest("one"), "schema_version": SCHEMA_VERSION, "rows": "rows/01"}
    assert scores.manifest == expected
    assert (scores.fingerprint, scores.rows_fingerprint) == ("one", "01")
    shown = read_json(tmp_path / File.SCORE_MANIFEST)
    assert {key: shown[key] for key in shown if key not in OF_FILE} == scores.manifest


# --- refused in one line -------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_run(scores_dir: Path, name: str) -> None:
    write(scores_dir / "other", "two")
    shutil.copy(scores_dir / "other" / name, scores_dir / name)


HARM: dict[str, Callable[[Path], object]] = {
    "damaged": lambda folder: flip_a_bit(folder / File.SCORES),
    "cut short": lambda folder: (folder / File.SCORES).write_bytes(b"PAR1"),
    "scores of another run": partial(of_another_run, name=File.SCORES),
    "manifest of another run": partial(of_another_run, name=File.SCORE_MANIFEST),
    "no manifest": lambda folder: (folder / File.SCORE_MANIFEST).unlink(),
    "broken manifest": lambda folder: (folder / File.SCORE_MANIFEST).write_text("["),
    "a list for a manifest": lambda folder: (folder / File.SCORE_MANIFEST).write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_scores_and_a_manifest_that_do_not_belong_together_are_refused(
    harm: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=r"run `cherry-vllm score` again") as refused:
        open_scores(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / File.SCORES}: ")
    assert "\n" not in str(refused.value)
    assert scores_fingerprint(tmp_path) is None


def test_scores_that_another_run_replaced_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    assert open_scores(tmp_path, "one").fingerprint == "one"
    write(tmp_path, "two")
    with pytest.raises(UserError, match=r"scores\.parquet: replaced by another run") as refused:
        open_scores(tmp_path, "one")
    assert "\n" not in str(refused.value)


def test_no_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; run `cherry-vllm score`"):
        open_scores(tmp_path)


def test_scores_of_an_earlier_release_are_refused(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / File.SCORES, metadata={"rows": "rows/01", "fingerprint": "23"})
    digest = file_sha256(tmp_path / File.SCORES)
    write_json(tmp_path / File.SCORE_MANIFEST, {"fingerprint": "23", "sha256": digest})
    with pytest.raises(UserError, match="scores of another release") as refused:
        open_scores(tmp_path)
    assert "\n" not in str(refused.value)
    write(tmp_path)
    assert open_scores(tmp_path).fingerprint == "one"


# --- files of the user ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [File.SCORES, File.SCORE_MANIFEST, File.IFD_PICTURE])
def test_files_that_no_run_left_are_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists and is not from cherry-vllm"):
        write(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == [name]
    assert (tmp_path / name).read_text() == "mine"


def add_a_column(scores: Path) -> None:
    """As pyarrow does, which keeps the metadata."""
    kept = {"manifest": pl.read_parquet_metadata(scores)["manifest"]}
    frame = pl.read_parquet(scores).with_columns(note=pl.lit("mine"))
    frame.write_parquet(scores, metadata=kept)


def note(shown: Path) -> None:
    write_json(shown, {**read_json(shown), "note": "mine"})


EDITS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a column more": (File.SCORES, add_a_column),
    "written by other software": (
        File.SCORES,
        lambda path: pl.read_parquet(path).write_parquet(path),
    ),
    "a note": (File.SCORE_MANIFEST, note),
    "other JSON": (File.SCORE_MANIFEST, lambda path: write_json(path, {"mine": True})),
}


@pytest.mark.parametrize(("name", "edit"), EDITS.values(), ids=EDITS)
def test_edited_files_are_never_replaced(
    name: str, edit: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path)
    edit(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UserError, match=f"{name}: edited, or not from cherry-vllm; move it away"):
        write(tmp_path)
    assert (tmp_path / name).read_bytes() == before
    (tmp_path / name).unlink()
    write(tmp_path)


@pytest.mark.parametrize("name", [File.SCORES, File.SCORE_MANIFEST, File.IFD_PICTURE])
def test_what_scoring_writes_is_no_input(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    refuse_as_input([tmp_path / "rows.parquet"], tmp_path)
    with pytest.raises(UserError, match=f"{name}: `score` writes this file"):
        refuse_as_input([tmp_path / "link" / name], tmp_path)


@pytest.mark.parametrize("name", [File.SCORES, File.SCORE_MANIFEST])
def test_one_flipped_bit_is_never_taken_for_an_edit(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytes([whole[place] ^ 1])
        (tmp_path / name).write_bytes(whole[:place] + flipped + whole[place + 1 :])
        check_scores_dir(tmp_path)


def test_damaged_scores_are_replaced(tmp_path: Path) -> None:
    for harm in ("damaged", "no manifest", "broken manifest"):
        write(tmp_path)
        HARM[harm](tmp_path)
        write(tmp_path)
        assert open_scores(tmp_path).fingerprint == "one"


# --- one state -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a writer as a kill would: nothing of it cleans up."""


def dies_at_replace(number: int, act: Callable[[], object]) -> bool:
    """Ends ``act`` before it moves file ``number`` to its place; False if it came to its end.

    Polars cannot be used in a forked process, so this one goes on.
    """
    left = number

    original = os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        original(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.replace", replace)
        patch.setattr(Path, "unlink", lambda _path, **_: None)
        try:
            act()
        except Killed:
            return True
    return False


def test_a_kill_at_any_step_leaves_the_old_scores_or_the_new_with_their_manifest(
    tmp_path: Path,
) -> None:
    seen, number, was_killed = set[str](), 0, True
    while was_killed:
        folder = tmp_path / str(number)
        write(folder, "old")
        was_killed = dies_at_replace(number, partial(write, folder, "new"))
        scores = open_scores(folder)
        assert_made_by(scores)
        seen.add(scores.fingerprint)
        write(folder, "newest")
        assert open_scores(folder).fingerprint == "newest"
        names = {path.name for path in folder.iterdir()}
        assert names == {File.SCORES, File.SCORE_MANIFEST, ".turn"}, "a leftover stays"
        number += 1
    assert seen == {"old", "new"}
    assert number == 4


@pytest.mark.slow
def test_readers_see_one_state_while_runs_end(tmp_path: Path) -> None:
    def write_all() -> None:
        for number in range(60):
            write(tmp_path, str(number))

    write(tmp_path, "0")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all)
        num_read = 0
        while not writing.done() or num_read < 20:
            scores = open_scores(tmp_path)
            assert_made_by(scores)
            num_read += 1
        writing.result()


# --- the way to the rows -------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    rows = Shards(tmp_path / "run" / "rows", {"files": []})
    rows.write(0, FRAME)
    rows.close(1)
    return tmp_path / "run"


def write_beside(run_dir: Path, scores_dir: Path) -> None:
    """Scores as :func:`aggregate` leaves them."""
    (rows,) = (run_dir / "rows").iterdir()
    write(scores_dir, rows=rows)


@pytest.mark.parametrize("inner", [".", "scores/base"])
def test_rows_are_found_after_the_run_folder_moved(run_dir: Path, inner: str) -> None:
    write_beside(run_dir, run_dir / inner)
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert_frame_equal(open_scores(moved / inner).open_rows().read(0), FRAME)


def test_rows_are_found_through_a_link_to_the_run_folder(run_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "deep" / "link"
    link.parent.mkdir(parents=True)
    link.symlink_to(run_dir)
    write_beside(link, link)
    for place in (link, run_dir):
        assert_frame_equal(open_scores(place).open_rows().read(0), FRAME)


@pytest.mark.parametrize("is_moved", [False, True])
def test_rows_are_found_from_a_scores_dir_that_is_a_link(
    run_dir: Path, tmp_path: Path, *, is_moved: bool
) -> None:
    (tmp_path / "big" / "disk").mkdir(parents=True)
    (run_dir / "scores").symlink_to(tmp_path / "big" / "disk")
    write_beside(run_dir, run_dir / "scores")
    if is_moved:
        run_dir = run_dir.rename(run_dir.with_name("moved"))
    assert_frame_equal(open_scores(run_dir / "scores").open_rows().read(0), FRAME)


def test_rows_that_are_gone_cost_one_line(run_dir: Path) -> None:
    write_beside(run_dir, run_dir)
    shutil.rmtree(run_dir / "rows")
    with pytest.raises(UserError, match=r"rows/.*no complete shards") as refused:
        open_scores(run_dir).open_rows()
    assert "\n" not in str(refused.value)
