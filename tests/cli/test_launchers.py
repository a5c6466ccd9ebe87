"""A job's own mistake costs one line and exit code 2 under every launcher of Hydra."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from cherry_vllm.cli import main

pytestmark = pytest.mark.process


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_mistake_in_a_job_costs_one_line_under_a_launcher_with_processes_of_its_own(
    launcher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if find_spec("hydra_plugins") is None or find_spec(plugin) is None:
        pytest.skip(f"needs the Hydra plugin {plugin}")
    argv = ["select", f"run_dir={tmp_path / 'no run'}", "-m", "select.fraction=0.1,0.2"]
    assert main([*argv, f"hydra/launcher={launcher}"]) == 2
    shown = capfd.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("cherry-vllm: ")]
    assert "no run/scores.parquet: no such file" in line
    assert "Traceback" not in shown.err + shown.out
