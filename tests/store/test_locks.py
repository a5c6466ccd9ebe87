"""Locks: one run at a time in a folder, however the last one ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.store.locks import exclusive

pytestmark = pytest.mark.process

# Says whether it got the lock, then holds the folder until its input ends.
HOLDER = """
import sys
from pathlib import Path
from cherry_vllm.errors import UserError
from cherry_vllm.store.locks import exclusive
try:
    with exclusive(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(f"refused: {error}", flush=True)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start_holder(run_dir) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another run") as refused, exclusive(run_dir):
            pytest.fail("two processes hold the folder")
        assert str(run_dir) in str(refused.value)
        assert f"process {first.pid} on" in str(refused.value)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
    with exclusive(run_dir), start_holder(run_dir) as second:
        answer = second.communicate()[0]
        assert answer.startswith("refused: ")
        assert f"process {os.getpid()} on" in answer


def test_a_folder_is_free_after_a_run_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a fault"), exclusive(tmp_path):
        raise ValueError("a fault")
    with start_holder(tmp_path) as next_run:
        assert next_run.communicate()[0] == "held\n"


def test_two_folders_are_held_at_once(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a"), start_holder(tmp_path / "b") as other:
        assert other.communicate()[0] == "held\n"
