"""Workers that are Ray actors."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import start
from tests.runs import assert_gone, assert_same, command, stamps, wait_for_shards

pytestmark = [pytest.mark.engine, pytest.mark.process]


def test_ray_actors_make_the_same_shards_and_take_over_from_a_killed_one(
    data: Path, tiny: Path, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    more = ("executor=ray", "executor.num_workers=2")
    process = start(*command(data, tiny, tmp_path, *more))
    wait_for_shards(process, tmp_path, 5)
    started_by = {pid: name for pid, name in processes() if name.startswith("ray::Actor")}
    assert len(started_by) == 2
    os.kill(min(started_by), signal.SIGKILL)
    finished = stamps(tmp_path)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the engine was lost" in stderr
    assert finished.items() <= stamps(tmp_path).items()
    assert_gone(list(started_by))
    assert_same(tmp_path, undisturbed)


def processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append((int(folder.name), name))
    return found
