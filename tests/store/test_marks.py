"""Outputs that are ours and those that are not: nothing else is ever replaced."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.store import files, marks
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import (
    MADE_BY,
    check_replaceable,
    is_ours,
    mark_path,
    marked_file,
    marked_folder,
    own_file,
    own_folder,
    read_mark,
)
from tests.kills import dies_at_step


def write_file(output: Path, text: str = "rows", **facts: Any) -> None:
    with marked_file(output, {MADE_BY: "select", **facts}) as path:
        path.write_text(text)


def write_folder(output: Path, text: str = "rows", **facts: Any) -> None:
    with marked_folder(output, {MADE_BY: "select", **facts}) as folder:
        (folder / "README.md").write_text(f"card of {text}")
        (folder / "data").mkdir()
        (folder / "data" / "train.parquet").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """Every file that a person would see, with its text."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in found
        if path.name != marks.LOCK
    }


def test_an_output_and_its_mark_are_written_together(tmp_path: Path) -> None:
    write_file(tmp_path / "cherry.json", count=3)
    assert is_ours(tmp_path / "cherry.json")
    assert read_mark(tmp_path / "cherry.json") == {
        "made_by": "select",
        "count": 3,
        "sha256": file_sha256(tmp_path / "cherry.json"),
    }
    assert sorted(tree(tmp_path)) == ["cherry.json", "cherry.json.meta.json"]


def test_outputs_of_one_stem_have_marks_of_their_own(tmp_path: Path) -> None:
    write_file(tmp_path / "cherry.json", count=1)
    write_file(tmp_path / "cherry.jsonl", count=2)
    write_folder(tmp_path / "cherry", count=3)
    found = [read_mark(tmp_path / name) for name in ("cherry.json", "cherry.jsonl", "cherry")]
    assert [mark and mark["count"] for mark in found] == [1, 2, 3]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_is_ours_is_replaced(tmp_path: Path, write: Callable[..., None]) -> None:
    for content in ("old", "new"):
        write(tmp_path / "cherry", content, content=content)
        mark = read_mark(tmp_path / "cherry")
        assert mark is not None
        assert mark["content"] == content
    assert "old" not in str(tree(tmp_path))


HARM: dict[str, Callable[[Path], object]] = {
    "a changed file": lambda output: (output / "README.md").write_text("my notes"),
    "one more file": lambda output: (output / "data" / "raw.jsonl").write_text("my only copy"),
    "one file less": lambda output: (output / "README.md").unlink(),
    "an empty folder": lambda output: (output / "notes").mkdir(),
    "a link": lambda output: (output / "link").symlink_to("README.md"),
    "no mark": lambda output: mark_path(output).unlink(),
    "a broken mark": lambda output: mark_path(output).write_text("{"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_folder_that_is_not_what_was_written_is_never_replaced(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    write_folder(tmp_path / "cherry")
    harm(tmp_path / "cherry")
    before = tree(tmp_path)
    assert not is_ours(tmp_path / "cherry")
    with pytest.raises(UserError, match="exists and is not") as refused:
        write_folder(tmp_path / "cherry", "new")
    assert "\n" not in str(refused.value)
    assert tree(tmp_path) == before


def test_a_folder_of_the_users_that_looks_like_an_export_is_never_replaced(tmp_path: Path) -> None:
    output = tmp_path / "cherry"
    (output / "data").mkdir(parents=True)
    (output / "README.md").write_text("my notes")
    (output / "data" / "train-00000-of-00001.parquet").write_text("my only copy")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="choose another output"):
        write_folder(output)
    assert tree(tmp_path) == before


def test_a_file_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "cherry.json").write_text("source rows")
    with pytest.raises(UserError, match="choose another output"):
        write_file(tmp_path / "cherry.json")
    write_file(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("edited by hand")
    with pytest.raises(UserError, match="choose another output"):
        write_file(tmp_path / "other.json")
    assert (tmp_path / "other.json").read_text() == "edited by hand"


def test_a_link_is_never_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "real.json")
    (tmp_path / "cherry.json").symlink_to("real.json")
    (tmp_path / "gone.json").symlink_to("nowhere")
    for name in ("cherry.json", "gone.json"):
        with pytest.raises(UserError, match="choose another output"):
            write_file(tmp_path / name)


@pytest.mark.parametrize(
    "content", [{"mine": True}, {"sha256": "0" * 64}, {"sha256": "0" * 64, "made_by": "my tool"}]
)
def test_a_file_where_the_mark_would_be_is_never_replaced(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    write_json(mark_path(tmp_path / "cherry.json"), content)
    with pytest.raises(UserError, match=r"cherry\.json\.meta\.json: exists and is not"):
        write_file(tmp_path / "cherry.json")
    assert read_json(mark_path(tmp_path / "cherry.json")) == content


def test_a_file_with_a_hash_beside_it_is_not_ours_for_that(tmp_path: Path) -> None:
    output = tmp_path / "cherry.json"
    output.write_text("mine")
    write_json(mark_path(output), {"sha256": file_sha256(output)})
    with pytest.raises(UserError, match="exists and is not what cherry-vllm wrote"):
        write_file(output)
    assert output.read_text() == "mine"


def test_the_mark_of_an_output_that_is_gone_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        write_file(tmp_path / "cherry.json")
        (tmp_path / "cherry.json").unlink()


def test_what_appears_while_the_output_is_made_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "cherry.json"

    def write_slowly() -> None:
        with marked_file(output, {MADE_BY: "select"}) as path:
            path.write_text("rows")
            output.write_text("mine")

    with pytest.raises(UserError, match="choose another output"):
        write_slowly()
    assert output.read_text() == "mine"


def test_the_mark_of_a_file_whose_name_nobody_chose_is_hidden(tmp_path: Path) -> None:
    page, pictures = tmp_path / "report.html", tmp_path / "report"
    for content in ("old", "new"):
        with own_file(page, "report", scores=content) as path:
            path.write_text(content)
        with own_folder(pictures, "report") as folder:
            (folder / f"{content}.png").write_text(content)
    shown = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert shown == {"report.html", "report"}
    assert [path.name for path in pictures.iterdir()] == ["new.png"]
    mark = read_mark(page)
    assert mark is not None
    assert mark["scores"] == "new"
    (pictures / "mine.png").touch()
    page.write_text("mine")
    for path in (page, pictures):
        with pytest.raises(UserError, match="choose another output or move it"):
            check_replaceable(path, "report")


def test_what_another_command_wrote_is_not_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "cherry.jsonl", made_by="select")
    with pytest.raises(UserError, match="written by another command"):
        check_replaceable(tmp_path / "cherry.jsonl", "generate")
    write_file(tmp_path / "cherry.jsonl", made_by="select")


# --- a kill at every step ------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("write", [write_file, write_folder])
@pytest.mark.parametrize("disk", ["swaps folders", "does not"])
def test_a_kill_at_any_step_leaves_the_old_output_or_the_new_and_a_mark_that_knows_it(
    tmp_path: Path, write: Callable[..., None], disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_sync", lambda _path: None)  # quicker
    if disk == "does not":
        monkeypatch.setattr(files, "_swap", lambda _first, _second: False)
    seen, number, was_killed = set[str](), 0, True
    while was_killed:
        folder = tmp_path / str(number)
        output = folder / "cherry"
        write(output, "old", content="old")
        was_killed = dies_at_step(number, partial(write, output, "new", content="new"))
        mark = read_mark(output)
        if mark is None:  # only between two renames of a folder
            assert (write, disk) == (write_folder, "does not")
            assert not output.exists()
            assert "old" in str(tree(folder))
        else:
            seen.add(mark["content"])
        write(output, "newest", content="newest")
        names = {path.name for path in folder.iterdir()}
        assert names == {"cherry", "cherry.meta.json", marks.LOCK}, "a leftover stays"
        mark = read_mark(output)
        assert mark is not None
        assert mark["content"] == "newest"
        number += 1
    assert seen == {"old", "new"}
    assert number > 5
