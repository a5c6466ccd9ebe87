"""A model folder: what names it, what is noticed of a change, what is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cherry_vllm.engines.checkpoint import find_checkpoint, read_checkpoint
from cherry_vllm.errors import UserError


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def overwrite(file: Path) -> None:
    """As a copy of another model over this one does: the same size, other contents."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def replace(file: Path) -> None:
    other = file.with_name(".other")
    shutil.copy2(file, other)
    overwrite(other)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [overwrite, replace, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_named(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    checkpoint = find_checkpoint(str(folder))
    checkpoint.verify()
    change(folder / name)
    with pytest.raises(UserError, match=f"{folder / name}: (has changed|is gone) since"):
        checkpoint.verify()


def test_a_file_that_was_added_is_named(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    (folder / "chat_template.jinja").write_text("another {{ messages }}")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config.json: is new since"):
        checkpoint.verify()


def test_a_copy_with_the_same_contents_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(folder)
    for file in folder.iterdir():
        file.touch()
    checkpoint.verify()
    copy = read_checkpoint(Path(shutil.copytree(folder, tmp_path / "copy")))
    assert copy.fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_whatever_decides_a_score_is_in_the_fingerprint(folder: Path, name: str) -> None:
    before = read_checkpoint(folder).fingerprint
    overwrite(folder / name)
    assert read_checkpoint(folder).fingerprint != before
