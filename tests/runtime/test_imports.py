"""A data folder is downloaded: nothing in it may run."""

import os
import sys
from pathlib import Path

import pytest

from cherry_vllm.runtime.imports import forget_current_directory, safe_environment


@pytest.mark.parametrize("path", ["", ":", ".", "sub:.:", ":sub"])
def test_relative_entries_of_pythonpath_are_not_handed_on(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", path)
    environment = safe_environment()
    assert "PYTHONPATH" not in environment
    assert environment["PYTHONSAFEPATH"] == "1"


def test_absolute_entries_of_pythonpath_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f":{tmp_path}:")
    assert safe_environment()["PYTHONPATH"] == str(tmp_path)


@pytest.mark.parametrize("entry", ["", ".", "here"])
def test_the_current_directory_leaves_the_path(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":/elsewhere")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", [str(tmp_path) if entry == "here" else entry, *before])
    forget_current_directory()
    assert sys.path == before
    assert os.environ["PYTHONPATH"] == "/elsewhere"
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_a_current_directory_that_was_named_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/elsewhere"])
    forget_current_directory()
    assert sys.path == [str(tmp_path), "/elsewhere"]


def test_a_deleted_current_directory_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    forget_current_directory()
    assert sys.path == ["/elsewhere"]
