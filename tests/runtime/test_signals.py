"""Signals end every command within two seconds, at any moment, and the same command resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import children, start
from tests.runs import NUM_ROWS, assert_gone, command, leftovers, stamps, wait_for_shards

pytestmark = pytest.mark.process

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT_S = 2.0
SLOW = ("shard_rows=1", "engine.batch_tokens=1")
RAY = ("executor=ray", "executor.num_workers=1")


def start_obedient(*arguments: object) -> subprocess.Popen[str]:
    """Starts the command line with no signal ignored, as what a job in the background starts is."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        return start(*arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def assert_stops(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sends a signal; the process ends in time, says so, and leaves nothing behind."""
    assert process.poll() is None, process.communicate()[1]
    started_by = descendants(process.pid)
    process.send_signal(number)
    sent = time.monotonic()
    process.wait()
    assert time.monotonic() - sent < LIMIT_S
    _, stderr = process.communicate()
    assert process.returncode == 128 + number
    last = stderr.splitlines()[-1]
    assert last == f"cherry-vllm: stopped by {number.name}; the same command resumes"
    assert "Traceback" not in stderr
    assert_gone(started_by)


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("number", "executor"),
    [(signal.SIGINT, ()), (signal.SIGHUP, ()), (signal.SIGTERM, RAY), (signal.SIGINT, RAY)],
)
def test_a_run_stops_after_its_first_shard(
    *, number: signal.Signals, executor: tuple[str, ...], data: Path, tiny: Path, tmp_path: Path
) -> None:
    if executor:
        pytest.importorskip("ray")
    process = start_obedient(*command(data, tiny, tmp_path, *SLOW, *executor))
    wait_for_shards(process, tmp_path, 1)
    assert_stops(process, number)
    assert leftovers(tmp_path) == []
    assert 1 <= len(stamps(tmp_path)) < NUM_ROWS


@pytest.mark.exhaustive
@pytest.mark.engine
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("stage", "first", "more"),
    [
        ("embed", "embeddings/*/part-*.done", SLOW),
        ("pipeline", "logprobs/*/part-*.done", (*SLOW, "sample=none")),
        ("pipeline", "logprobs/*/part-*.done", (*SLOW, "sample=none", *RAY)),
        ("train", "models/*/checkpoints/*", ("train.num_epochs=1000", "train.save_steps=1")),
        ("generate", "answers/*/part-*.done", ("generate.shard_questions=1",)),
    ],
    ids=["embed", "pipeline", "pipeline on ray", "train", "generate"],
)
def test_a_stage_stops_after_its_first_result(
    *,
    stage: str,
    first: str,
    more: tuple[str, ...],
    number: signal.Signals,
    data: Path,
    tiny: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    words = command(data, tiny, run_dir, *more)[1:]
    if stage == "generate":
        questions = tmp_path / "questions.jsonl"
        lines = [{"question_id": n, "question": f"What is {n}?"} for n in range(100)]
        questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        words += [f"testset.path={questions}", "engine.batch_tokens=1"]
        words += ["testset.columns.id=question_id", "testset.columns.question=question"]
    process = start_obedient(stage, *words)
    wait_until(lambda: process.poll() is not None or any(run_dir.glob(first)))
    assert_stops(process, number)


@pytest.mark.parametrize("delay_s", [0.1, 0.5])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_stops_while_it_is_still_imported(
    number: signal.Signals, delay_s: float, data: Path, tiny: Path, tmp_path: Path
) -> None:
    process = start_obedient(*command(data, tiny, tmp_path))
    time.sleep(delay_s)
    wait_until(lambda: is_ready(process.pid))
    assert_stops(process, number)


def is_ready(pid: int) -> bool:
    """Whether Python has got as far as this package's first line, and catches SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def wait_until(happens: Callable[[], bool]) -> None:
    while not happens():
        time.sleep(0.005)


STUCK = """
import sys, time
from threading import Event, Thread
from cherry_vllm.runtime.signals import install_handlers, obeying_signals

def ignore_interrupts():
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

with obeying_signals():
    import ctypes, polars, subprocess
    install_handlers()
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    print("ready", flush=True)
    {stuck}
"""


@pytest.mark.parametrize(
    "stuck",
    [
        "ctypes.CDLL(None).sleep(60); ctypes.CDLL(None).sleep(60)",
        "thread = Thread(target=Event().wait); thread.start(); thread.join()",
        "ignore_interrupts()",
    ],
    ids=["in native code", "waiting for a thread", "interrupts swallowed"],
)
def test_a_process_that_cannot_be_interrupted_is_ended(stuck: str) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.replace("{stuck}", stuck)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    assert children(process.pid)
    assert_stops(process, signal.SIGINT)


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    process = start(*command(data, tiny, tmp_path))
    signal.signal(signal.SIGHUP, before)
    wait_until(lambda: is_ready(process.pid))
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(2)
    assert process.poll() is None
    process.kill()
    process.communicate()
