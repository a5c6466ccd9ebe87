"""A built wheel in a clean environment, used from another folder."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, ROWS

pytestmark = [pytest.mark.process, pytest.mark.engine]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that holds the wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(
        *pip,
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
        cwd=folder,
    )
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    # The dependencies, which take gigabytes, come from the environment that runs the tests. Paths
    # named in a .pth file are not searched for further ones, so its editable install stays out.
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin" / "cherry-vllm"


def test_the_wheel_is_what_runs_and_it_carries_its_configuration(
    installed: Path, tmp_path: Path
) -> None:
    python = installed.with_name("python")
    where = run(python, "-c", "import cherry_vllm; print(cherry_vllm.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parents[1]))
    assert "max_length: 512" in run(installed, "score", "--cfg", "job", cwd=tmp_path)


def test_score_and_select_run_from_another_folder(
    installed: Path, tiny: Path, tmp_path: Path
) -> None:
    options = ("engine=hf", "max_length=64", "prompt=wizardlm", "run_dir=run")
    run(installed, "score", f"data.path={ROWS}", f"model.path={tiny}", *options, cwd=tmp_path)
    assert "cherry: 2 rows" in run(
        installed, "select", "run_dir=run", "select.count=2", cwd=tmp_path
    )
    assert len(json.loads((tmp_path / "run" / "cherry.json").read_text(encoding="utf-8"))) == 2
    run(installed, "report", "run_dir=run", cwd=tmp_path)
    assert "cherry-vllm report" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
