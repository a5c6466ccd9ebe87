"""Paths, globs and what is found there."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.sources import find_files
from tests.sources.samples import FIRST, LAST, complaint_about, encoded, file_of, file_with, rows_of


def find_complaint(*patterns: object) -> str:
    with pytest.raises(UserError) as caught:
        find_files([str(pattern) for pattern in patterns])
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_keep_the_order_given_and_shards_are_sorted(tmp_path: Path) -> None:
    names = ["part-10.jsonl", "part-02.jsonl", "part-01.jsonl", "z.jsonl", "sub/part-00.jsonl"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / "part-03.csv").write_text("a")
    found = find_files([str(tmp_path / "z.jsonl"), str(tmp_path / "part-*.jsonl")])
    expected = ["z.jsonl", "part-01.jsonl", "part-02.jsonl", "part-10.jsonl"]
    assert [path.name for path in found] == expected
    deep = find_files([str(tmp_path / "**/part-*.jsonl")])
    assert [path.name for path in deep][-1] == "part-00.jsonl"
    assert len(deep) == 4


def test_shards_found_by_a_glob_are_read_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 10, 1):
        sample = {"instruction": "i", "output": str(index)}
        file_of(tmp_path, f"part-{index:03d}.jsonl.gz", [sample])
    rows = rows_of(*find_files([str(tmp_path / "*.gz")]))
    assert rows["answer"].to_list() == ["0", "1", "2", "10"]
    assert rows["row"].to_list() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("stem", ["d[1]", "d*", "d?"])
def test_a_name_that_looks_like_a_glob_is_the_file_itself(
    tmp_path: Path, stem: str, suffix: str
) -> None:
    path = file_of(tmp_path, stem + suffix, [FIRST])
    file_of(tmp_path, "d1" + suffix, [LAST])
    assert find_files([str(path)]) == [path]
    assert rows_of(path)["answer"].to_list() == ["first"]


def test_an_empty_file_is_a_user_error(tmp_path: Path) -> None:
    path = file_with(tmp_path, "d.jsonl", b"")
    assert f"{path}: the file is empty" in find_complaint(path)


def test_a_folder_without_data_is_a_user_error(tmp_path: Path) -> None:
    for name in ("README.md", ".hidden.jsonl", "dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    assert f"{tmp_path}: a folder without data files" in find_complaint(tmp_path)


def test_a_folder_is_its_data_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/x.jsonl.gz", "a/Y.JSONL", "README.md", "_more/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = [tmp_path / name for name in ("a/Y.JSONL", "a/x.jsonl.gz", "b.jsonl")]
    assert find_files([str(tmp_path)]) == found
    assert find_files([f"{tmp_path}/"]) == found
    (tmp_path / "c.csv").write_text("a,b")
    assert "files of several formats; give those of one, as in" in find_complaint(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_a_folder_is_found_by_its_name(tmp_path: Path, split: str) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        file_of(tmp_path / "data", name, [FIRST])
    found = find_files([str(tmp_path)], split=split)
    assert [path.name for path in found] == [
        path.name for path in sorted((tmp_path / "data").glob(f"{split}*"))
    ]
    with pytest.raises(UserError, match=r"no split 'dev' \(found: train, test\)"):
        find_files([str(tmp_path)], split="dev")
    with pytest.raises(UserError, match=r"leave out data\.split"):
        find_files([str(found[0])], split="train")


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "missing.jsonl"
    assert f"{path}: No such file" in find_complaint(path)


def test_a_glob_without_a_match_is_a_user_error(tmp_path: Path) -> None:
    good = file_of(tmp_path, "d.jsonl", [FIRST])
    pattern = tmp_path / "*.parquet"
    assert f"{pattern}: no file matches" in find_complaint(good, pattern)


def test_an_empty_list_of_files_is_a_user_error() -> None:
    assert "data.path" in find_complaint()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_a_user_error(tmp_path: Path) -> None:
    path = file_of(tmp_path, "d.jsonl", [FIRST])
    path.chmod(0)
    assert f"{path}: Permission denied" in find_complaint(path)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = file_of(tmp_path, "d.jsonl", [FIRST])
    assert find_files(["~/d.jsonl"]) == find_files(["~/*.jsonl"]) == [path]


@pytest.mark.parametrize("name", ["alpaca (1).jsonl", "lr=2e-5,ep=3.jsonl", "TRAIN.JSONL.GZ"])
def test_names_from_downloads_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded([FIRST], name.lower()))
    assert rows_of(*find_files([str(path)]))["answer"].to_list() == ["first"]


def test_a_name_that_is_not_utf8_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_bytes(encoded([FIRST], "d.jsonl"))
    for pattern in (str(path), f"{tmp_path}/*.jsonl"):
        message = find_complaint(pattern)
        assert "name is not UTF-8; rename it" in message
        message.encode()


def test_a_file_that_is_named_twice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        file_of(tmp_path, name, [FIRST])
    found = find_files(["b.jsonl", "*.jsonl", str(tmp_path / "a.jsonl"), "./b.jsonl"])
    assert [path.name for path in found] == ["b.jsonl", "a.jsonl"]
    assert "3 files are named twice, and read once" in caplog.text


def test_a_file_that_a_link_names_again_is_read_once(tmp_path: Path) -> None:
    path = file_of(tmp_path, "rows.jsonl", [FIRST])
    (tmp_path / "link.txt").symlink_to(path)
    assert find_files([str(path), str(tmp_path / "link.txt")]) == [path]
    (tmp_path / "data" / "v3").mkdir(parents=True)
    file_of(tmp_path / "data" / "v3", "a.jsonl", [FIRST])
    (tmp_path / "data" / "latest").symlink_to("v3")
    assert len(find_files([f"{tmp_path}/data/*/*.jsonl"])) == 1


# --- folders of Dataset.save_to_disk -----------------------------------------------------------


def save_to_disk(folder: Path, *parts: list[dict[str, Any]]) -> Path:
    """A folder as the datasets library writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05d}-of-{len(parts):05d}.arrow" for part in range(len(parts))]
    for name, samples in zip(names, parts, strict=True):
        pl.DataFrame(samples).write_ipc_stream(folder / name)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(
        json.dumps({"features": {name: {} for name in FIRST}})
    )
    return folder


def test_a_folder_of_save_to_disk_is_its_files(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "saved", [FIRST], [LAST])
    rows = rows_of(*find_files([str(folder)]))
    assert rows["answer"].to_list() == ["first", "last"]
    assert rows_of(*find_files([f"{folder}/*.arrow"])).equals(rows)
    assert "no field 'instruction'" in complaint_about(*find_files([f"{folder}/*.json"]))


def test_a_saved_folder_of_several_splits_names_them_and_reads_one(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save_to_disk(saved / "train", [FIRST])
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = find_complaint(saved)
    assert message.endswith("several splits (train, test); add data.split=train")
    assert find_files([str(saved)], split="train") == find_files([f"{saved}/train"])
    with pytest.raises(UserError, match=r"no split 'dev' \(found: train, test\)"):
        find_files([str(saved)], split="dev")


def test_a_recursive_glob_matches_files_alone(tmp_path: Path) -> None:
    (tmp_path / "d" / "inner").mkdir(parents=True)
    files = [tmp_path / "d" / name for name in ("a.jsonl", "inner/b.jsonl")]
    for file in files:
        file.write_text("{}\n")
    assert find_files([str(tmp_path / "d" / "**")]) == files


def test_a_linked_folder_in_a_folder_is_read_once(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    data.mkdir()
    file_of(elsewhere, "b.jsonl", [LAST])
    file_of(data, "a.jsonl", [FIRST])
    (data / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(data)
    assert [file.name for file in find_files([str(data)])] == ["a.jsonl", "b.jsonl"]


def test_the_advice_for_a_folder_of_several_formats_works(tmp_path: Path) -> None:
    folder = tmp_path / "d [v1]"
    folder.mkdir()
    file_of(folder, "a.csv", [FIRST])
    file_of(folder, "b.jsonl.gz", [LAST])
    advice = find_complaint(folder).partition("data.path=")[2].strip("'")
    assert advice.endswith("*.jsonl.gz")
    assert [file.name for file in find_files([advice])] == ["b.jsonl.gz"]


def test_a_saved_data_set_has_no_configurations_and_maybe_no_split(tmp_path: Path) -> None:
    state = save_to_disk(tmp_path / "saved", [FIRST]) / "state.json"
    state.write_text(state.read_text().replace('"train"', "null"))
    with pytest.raises(UserError, match=r"leave out data\.config"):
        find_files([str(tmp_path / "saved")], config="main")
    with pytest.raises(UserError, match=r"a data set without splits; leave out data\.split"):
        find_files([str(tmp_path / "saved")], split="train")
