"""Children: what they import, and that nothing of them is left."""

import os
import sys
import time
from pathlib import Path

import pytest

import cherry_vllm
from cherry_vllm.runtime.processes import Child, ChildError, Wire, isolate
from tests.conftest import Cli
from tests.runs import assert_gone, command

pytestmark = pytest.mark.process

PACKAGE = Path(cherry_vllm.__file__).parent
HOSTILE = ("tqdm", "polars", "numpy", "torch", "logging", "pickle", "socket", "hydra_plugins")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, the current one, with modules that leave a trace if they run."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in HOSTILE:
        trace = tmp_path / f"{name}.ran"
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'w')\nraise SystemExit(99)\n")
    monkeypatch.chdir(folder)
    return folder


def python_path() -> list[str]:
    return sys.path


def test_a_child_imports_nothing_from_the_current_directory(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f":{os.environ.get('PYTHONPATH', '')}")
    path: list[str] = isolate(python_path)
    assert not {"", ".", str(hostile)} & set(path)
    assert list(hostile.parent.glob("*.ran")) == []


@pytest.mark.engine
@pytest.mark.parametrize("executor", [(), ("executor=ray", "executor.num_workers=1")])
def test_a_run_imports_nothing_from_the_folder_of_its_data(
    *,
    executor: tuple[str, ...],
    hostile: Path,
    data: Path,
    tiny: Path,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if executor:
        pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f":{os.environ.get('PYTHONPATH', '')}:")
    done = cli(*command(data, tiny, tmp_path / "run", "shard_rows=120", *executor), cwd=hostile)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.ran")) == []


def test_every_python_that_the_package_starts_ignores_the_current_directory() -> None:
    starters = [path for path in PACKAGE.rglob("*.py") if "sys.executable" in path.read_text()]
    assert len(starters) >= 2
    for path in starters:
        text = path.read_text()
        assert text.count('[sys.executable, "-P"') == text.count("sys.executable"), path


def test_closing_a_child_ends_all_that_it_started() -> None:
    child = Child(start_sessions)
    pids = child.receive()
    child.close()
    assert_gone(pids)


def start_sessions(wire: Wire) -> None:
    import subprocess

    first = subprocess.Popen(["sleep", "60"], start_new_session=True)
    second = subprocess.Popen(["sleep", "60"])
    wire.send([first.pid, second.pid])
    time.sleep(60)


def test_a_child_that_hangs_is_told_from_one_that_computes() -> None:
    for work, expected in ((sleep, "gave no sign of life for 1 s"), (spin, "done")):
        child = Child(work)
        try:
            found = child.receive(timeout_s=1)
        except ChildError as lost:
            found = str(lost)
        finally:
            child.close()
        assert found == expected


def sleep(_wire: Wire) -> None:
    time.sleep(60)


def spin(wire: Wire) -> None:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        pass
    wire.send("done")
