"""The command line as a process: where its output goes, and the wrapper that starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

COMMAND = f"{sys.executable} -m cherry_vllm"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_a_reader_that_leaves_and_a_full_disk_are_no_traceback(tmp_path: Path) -> None:
    done = shell(f"{COMMAND} --help | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode in (0, 141)  # 0: it was faster than the reader
    assert done.stderr == ""
    done = shell(f"{COMMAND} --help > /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "cherry-vllm: stdout: No space left on device; check where the output goes\n"
    )


def test_a_mistake_is_one_line_of_a_real_process_too(tmp_path: Path) -> None:
    done = shell(f"{COMMAND} score max_lenght=3", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "cherry-vllm: max_lenght: no such key; did you mean max_length?\n"
    assert list(tmp_path.iterdir()) == []
