"""Files of a run that are no longer what was written: one line, or made again."""

from pathlib import Path

import pytest

from cherry_vllm.errors import DamagedFileError, UserError
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.shards import Shards


@pytest.mark.parametrize("content", [b'{"a": "b', b"[1]", b"", b"\xff\xfe{}", b"NaN"])
def test_damaged_json_costs_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "complete.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"complete\.json: damaged") as told:
        read_json(path)
    assert isinstance(told.value, DamagedFileError)
    assert "\n" not in str(told.value)


def test_settings_that_were_damaged_are_recorded_again(tmp_path: Path) -> None:
    shards = Shards(tmp_path, {"seed": 1})
    shards.begin()
    write_json(shards.folder / "settings.json", {"seed": 2})
    assert not shards.is_begun()
    (shards.folder / "settings.json").write_bytes(b'{"se')
    assert not shards.is_begun()
    shards.begin()
    assert shards.is_begun()
