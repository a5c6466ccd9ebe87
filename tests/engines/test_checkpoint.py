"""A model folder: what names it, what is noticed of a change, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cherry_vllm.engines.checkpoint import checkpoint_dtype, find_checkpoint, read_checkpoint
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


@pytest.mark.parametrize("name", ["modeling_own.py", "code/modeling_own.py"])
def test_code_is_in_the_fingerprint(folder: Path, name: str) -> None:
    (folder / "code").mkdir()
    before = read_checkpoint(folder)
    (folder / name).write_text("A = 1")
    after = read_checkpoint(folder)
    assert after.fingerprint != before.fingerprint
    (folder / name).write_text("A = 2")
    with pytest.raises(UserError, match=rf"{name}: has changed since"):
        after.verify()


def name_code(folder: Path, reference: str) -> None:
    """Has the model take its class from this code."""
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoModelForCausalLM": reference}
    (folder / "config.json").write_text(json.dumps(content))


def test_code_in_a_folder_of_the_model_is_accepted(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "modeling_own.py").write_text("A = 1")
    name_code(folder, "code/modeling_own.Model")
    found = find_checkpoint(str(folder), trust_remote_code=True)
    assert "code/modeling_own.py" in {file.name for file in found.files}


@pytest.mark.parametrize("name", ["../modeling_own", "linked/modeling_own"])
def test_code_from_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "modeling_own.py").write_text("A = 1")
    (folder / "linked").symlink_to(folder.parent)
    name_code(folder, f"{name}.Model")
    find_checkpoint(str(folder))
    with pytest.raises(UserError, match=r"auto_map takes code from .*/modeling_own.*, which is no"):
        find_checkpoint(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_from_another_repository_is_refused(folder: Path, name: str) -> None:
    content = json.loads((folder / name).read_text())
    content["auto_map"] = {"AutoTokenizer": ["org/code--own.Tokenizer", None]}
    (folder / name).write_text(json.dumps(content))
    find_checkpoint(str(folder))
    with pytest.raises(
        UserError, match=f"{name}: auto_map takes code from the repository org/code"
    ):
        find_checkpoint(str(folder), trust_remote_code=True)


def test_a_damaged_configuration_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: damaged; fetch it again"):
        checkpoint_dtype(folder)


@pytest.mark.parametrize("name", ["shards/x.safetensors", "../x.safetensors", "x.bin"])
def test_weights_that_the_fingerprint_would_not_notice_are_refused(folder: Path, name: str) -> None:
    (folder / "shards").mkdir()
    (folder / "model.safetensors").rename(folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match=rf"index\.json: lists {name}; keep all weights beside"):
        find_checkpoint(str(folder))
