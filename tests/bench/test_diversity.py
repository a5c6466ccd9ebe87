"""The measurement of diversity picks as many rows as it is asked for, the same ones each time."""

import pytest

from bench.diversity import measure
from cherry_vllm.options import Diversify


@pytest.mark.parametrize("method", [method.name for method in Diversify])
def test_equal_measurements_pick_equal_rows(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    words = [method, "--candidates", "300", "--count", "30", "--width", "8", "--strata", "2"]
    shown = []
    for _ in range(2):
        measure(words)
        shown.append(capsys.readouterr().out.splitlines())
    assert shown[0][-1] == shown[1][-1]
    assert shown[0][0] in {f"picked {count} of 300 x 8" for count in (29, 30)}
