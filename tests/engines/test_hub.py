"""What is fetched of a model on the hub: all that an engine reads, and no weights twice."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from cherry_vllm.engines.hub import download_model
from cherry_vllm.errors import UserError

COMMIT = "0123456789" * 4
asked: list[str | None] = []  # revisions
ALWAYS = [
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "qwen.tiktoken",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]
CODE = ["custom_generate/generate.py", "modeling_own.py", "tokenization_own.py"]
NEVER = [
    "README.md",
    "consolidated.safetensors",
    "fp16/model.safetensors",
    "model.fp16.safetensors",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    "pytorch_model.bin",
]
PARTS = ["pytorch_model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": dict(zip("ab", PARTS, strict=True))})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for ``org/model``, without weights yet."""
    folder = tmp_path / "org" / "model"
    for name in ALWAYS + CODE + NEVER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    def fetch(
        name: str,
        *,
        revision: str | None,
        allow_patterns: Iterable[str],
        ignore_patterns: Iterable[str] | None,
    ) -> str:
        if name not in ("org/model", "gpt2"):
            raise OSError("404 Client Error.\nRepository Not Found")
        assert revision in (None, COMMIT, "v2")
        asked.append(revision)
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        cached = tmp_path / "cache" / "snapshots" / COMMIT
        for wanted in filter_repo_objects(
            names, allow_patterns=list(allow_patterns), ignore_patterns=ignore_patterns
        ):
            (cached / wanted).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / wanted, cached / wanted)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    return folder


def fetched(name: str = "org/model", *, with_code: bool = False) -> list[str]:
    folder = download_model(name, with_code=with_code, key="model.path")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_of_one_file_of_weights_there_is_one(repository: Path) -> None:
    (repository / "model.safetensors").write_text("")
    assert fetched() == sorted([*ALWAYS, "model.safetensors"])


def test_of_an_index_there_are_the_files_that_it_lists(repository: Path) -> None:
    for name in [*PARTS, "model.safetensors"]:
        (repository / name).write_text("")
    (repository / "model.safetensors.index.json").write_text(INDEX)
    assert fetched() == sorted([*ALWAYS, *PARTS, "model.safetensors.index.json"])


def test_code_is_fetched_only_where_it_is_trusted(repository: Path) -> None:
    (repository / "model.safetensors").write_text("")
    assert fetched(with_code=True) == sorted([*ALWAYS, *CODE, "model.safetensors"])


def test_a_name_needs_no_owner(repository: Path) -> None:
    (repository / "model.safetensors").write_text("")
    assert fetched("gpt2") == sorted([*ALWAYS, "model.safetensors"])


def test_of_an_adapter_there_are_its_weights(repository: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        (repository / name).write_text("{}")
    found = ["adapter_config.json", "adapter_model.safetensors"]
    assert fetched() == sorted([*ALWAYS, *found])


@pytest.mark.parametrize("revision", [None, "v2"])
def test_all_files_are_of_one_revision(repository: Path, revision: str | None) -> None:
    (repository / "model.safetensors").write_text("")
    asked.clear()
    download_model("org/model", with_code=False, key="model.base", revision=revision)
    assert asked == [revision, COMMIT]


def test_weights_are_fetched_only_once_the_settings_have_been_checked(repository: Path) -> None:
    (repository / "model.safetensors").write_text("")

    def check(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        assert not (folder / "model.safetensors").exists()
        raise UserError("quantized")

    with pytest.raises(UserError, match="quantized"):
        download_model("org/model", with_code=False, key="model.base", check=check)


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("key", ["model.path", "model.base"])
def test_a_model_that_is_nowhere_is_one_line(key: str) -> None:
    for name in ("org/other", "other"):
        with pytest.raises(
            UserError,
            match=rf"^{name}: not found .* \(404 Client Error\.\); check {key}, the network",
        ):
            download_model(name, with_code=False, key=key)
    for name in ("./other", "some/folder/other", "~other"):
        with pytest.raises(UserError, match=rf"^{name}: no such folder; check {key}$"):
            download_model(name, with_code=False, key=key)
