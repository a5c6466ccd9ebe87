"""The benchmark of a million rows, with a few."""

from pathlib import Path

import pytest

from bench.million import find_steps, run_step, write_inputs


@pytest.mark.slow
def test_each_step_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(tmp_path, num_rows=300, num_tokens=30)
    steps = find_steps()
    assert {"aggregate", "cherry", "balanced", "sql"} <= set(steps)
    for step in steps:
        run_step(step, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == steps
