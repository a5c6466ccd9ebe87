"""Fingerprints of settings; hashes of large files, computed once for each change, never wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.store import hashes
from cherry_vllm.store.hashes import SMALL_BYTES, file_sha256, fingerprint, stamped_sha256

SETTINGS: dict[str, Any] = {
    "model": "m",
    "max_length": 512,
    "prompt": {"marker": "x", "chat": False},
}


@pytest.fixture(autouse=True)
def read_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed, with an empty cache at first."""
    read: list[Path] = []

    def count(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "file_sha256", count)
    forget_this_process(monkeypatch)
    return read


def forget_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_known", {})


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(SMALL_BYTES))
    return path


def test_a_file_is_read_once_for_all_processes(
    large: Path, read_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [stamped_sha256(large)[1], stamped_sha256(large)[1]]
    forget_this_process(monkeypatch)
    found.append(stamped_sha256(large)[1])
    assert set(found) == {file_sha256(large)}
    assert read_files == [large]


def test_a_changed_file_is_read_again(large: Path, read_files: list[Path]) -> None:
    before = stamped_sha256(large)
    large.write_bytes(b"1" * SMALL_BYTES)
    after = stamped_sha256(large)
    assert before[0] != after[0]
    assert after[1] == file_sha256(large) != before[1]
    assert len(read_files) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [[1], "x"]}', "\0\xff"])
def test_a_damaged_cache_is_written_again(
    large: Path, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "cherry-vllm" / "hashes.json"
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding="latin-1")
    assert stamped_sha256(large)[1] == file_sha256(large)
    assert str(large) in json.loads(cache.read_text())
    forget_this_process(monkeypatch)
    assert stamped_sha256(large)[1] == file_sha256(large)


def test_a_cache_that_cannot_be_written_costs_time_only(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert stamped_sha256(large)[1] == file_sha256(large)


def test_files_that_are_gone_leave_the_cache(large: Path, tmp_path: Path) -> None:
    stamped_sha256(large)
    other = large.rename(tmp_path / "other.safetensors")
    stamped_sha256(other)
    cache = json.loads((tmp_path / "cache" / "cherry-vllm" / "hashes.json").read_text())
    assert list(cache) == [str(other)]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    reordered = {"prompt": {"chat": False, "marker": "x"}, "max_length": 512, "model": "m"}
    assert list(reordered) != list(SETTINGS)
    assert fingerprint(reordered) == fingerprint(SETTINGS)
    assert set(fingerprint(SETTINGS)) <= set("0123456789abcdef")
    assert len(fingerprint(SETTINGS)) == 16


@pytest.mark.parametrize(
    "other",
    [
        {**SETTINGS, "max_length": 513},
        {**SETTINGS, "max_length": "512"},
        {**SETTINGS, "extra": None},
        {**SETTINGS, "prompt": {"marker": "y", "chat": False}},
        {**SETTINGS, "prompt": {"marker": "x", "chat": None}},
        {"model": "m", "max_length": 512},
        {},
    ],
)
def test_another_setting_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(other) != fingerprint(SETTINGS)


def test_the_order_of_a_list_counts() -> None:
    assert fingerprint({"files": ["a", "b"]}) != fingerprint({"files": ["b", "a"]})
