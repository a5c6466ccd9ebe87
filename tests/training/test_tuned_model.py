"""The record of a training that is no longer what was written."""

from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.errors import DamagedFileError
from cherry_vllm.store.files import write_json
from cherry_vllm.training.tuned_model import open_tuned


@pytest.mark.parametrize(
    "content", [{}, {"checkpoints": {}}, {"checkpoints": None}, {"checkpoints": {"model": "1"}}]
)
def test_a_damaged_record_costs_one_line(content: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", content)
    with pytest.raises(DamagedFileError, match=r"train\.json: damaged; restore it, or") as told:
        open_tuned(tmp_path)
    assert "\n" not in str(told.value)
