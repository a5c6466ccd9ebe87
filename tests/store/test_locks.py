"""Locks: one run at a time in a folder, however the last one ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.store import locks
from cherry_vllm.store.files import write_json
from cherry_vllm.store.locks import changing, exclusive, exclusive_share, in_turn
from tests.kills import dies_at_step

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


@pytest.mark.process
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


@pytest.mark.process
def test_a_folder_is_free_after_a_run_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a fault"), exclusive(tmp_path):
        raise ValueError("a fault")
    with start_holder(tmp_path) as next_run:
        assert next_run.communicate()[0] == "held\n"


@pytest.mark.process
def test_two_folders_are_held_at_once(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a"), start_holder(tmp_path / "b") as other:
        assert other.communicate()[0] == "held\n"


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(UserError, match=words) as error:
        yield
    assert "\n" not in str(error.value)


def test_two_threads_exclude_each_other_as_two_processes_do(tmp_path: Path) -> None:
    with exclusive(tmp_path), ThreadPoolExecutor(1) as pool:
        with refused("in use by another run"), exclusive(tmp_path):
            pytest.fail("held twice")
        attempt = pool.submit(lambda: exclusive(tmp_path).__enter__())
        assert isinstance(attempt.exception(), UserError)
    with exclusive(tmp_path):
        pass


def test_a_lock_outlives_the_closing_of_its_file_by_others(tmp_path: Path) -> None:
    """POSIX locks that belong to a process are lost as soon as it closes the file anywhere."""
    with exclusive(tmp_path):
        (tmp_path / ".lock").read_text()
        with refused("in use"), exclusive(tmp_path):
            pytest.fail("held twice")


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get
)
@pytest.mark.parametrize("hold", [exclusive, in_turn])
def test_a_file_system_without_locks_costs_one_line(
    hold: Callable[[Path], AbstractContextManager[None]],
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with refused(f"{tmp_path}: the file system does not support locks"), hold(tmp_path):
        pytest.fail("held without a lock")


HOLDS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    ".lock": exclusive,
    ".turn": in_turn,
    ".cherry-vllm.lock": partial(changing, lock=".cherry-vllm.lock"),
    ".lock-0-of-2": lambda folder: exclusive_share(folder, 0, 2),
}


@pytest.mark.parametrize(("name", "hold"), HOLDS.items(), ids=HOLDS)
@pytest.mark.parametrize("content", [b"my notes", b"12 on my list\n", b"\xff" * 9])
def test_a_file_of_the_users_is_no_lock(
    name: str, hold: Callable[[Path], AbstractContextManager[None]], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(f"{tmp_path / name}: not a lock file of cherry-vllm"), hold(tmp_path):
        pytest.fail("held")
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("content", ["notes", "", "12 on node"])
@pytest.mark.parametrize(("name", "hold"), HOLDS.items(), ids=HOLDS)
def test_no_lock_is_taken_through_a_link(
    name: str, hold: Callable[[Path], AbstractContextManager[None]], content: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text(content)
    (tmp_path / name).symlink_to("mine")
    with refused(f"{tmp_path / name}: not a lock file of cherry-vllm"), hold(tmp_path):
        pytest.fail("held")
    assert (tmp_path / "mine").read_text() == content


def test_lock_files_of_earlier_runs_are_taken(tmp_path: Path) -> None:
    for content in ("", "12 on a.node-b", "12 on a, among others13 on b, among others"):
        (tmp_path / ".lock").write_text(content)
        with exclusive(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


# --- turns ---------------------------------------------------------------------------------------


def test_blocks_in_turn_never_overlap(tmp_path: Path) -> None:
    inside = 0

    def work(_number: int) -> int:
        nonlocal inside
        with in_turn(tmp_path):
            inside += 1
            found = inside
            Event().wait(0.002)
            inside -= 1
        return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(40))) == {1}


def test_waiting_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.05)
    is_held, is_over = Event(), Event()

    def hold() -> None:
        with in_turn(tmp_path):
            is_held.set()
            is_over.wait(10)

    with ThreadPoolExecutor(2) as pool, caplog.at_level("INFO"):
        pool.submit(hold)
        is_held.wait(10)
        second = pool.submit(lambda: in_turn(tmp_path).__enter__())
        while not caplog.messages:
            Event().wait(0.01)
        is_over.set()
        second.result(10)
    assert caplog.messages == [
        f"{tmp_path}: waiting for another run (process {os.getpid()} on {os.uname().nodename})"
    ]


# --- shares --------------------------------------------------------------------------------------


def test_shares_of_one_count_are_held_side_by_side(tmp_path: Path) -> None:
    with ExitStack() as held:
        for index in range(3):
            held.enter_context(exclusive_share(tmp_path, index, 3))
        with refused("in use by another run"), exclusive(tmp_path):
            pytest.fail("all of it held beside its shares")
        with refused("in use by another run"), exclusive_share(tmp_path, 1, 3):
            pytest.fail("one share held twice")
    with exclusive(tmp_path), refused("in use"), exclusive_share(tmp_path, 0, 2):
        pytest.fail("a share held beside all of it")


def test_shares_of_different_counts_never_run_side_by_side(tmp_path: Path) -> None:
    with exclusive_share(tmp_path, 0, 2):
        words = f"{tmp_path}: in use by a run in 2 shares .*give share.count=2, or wait"
        with refused(words), exclusive_share(tmp_path, 0, 3):
            pytest.fail("0 of 3 held beside 0 of 2")
    with exclusive_share(tmp_path, 0, 3), refused("in use"), exclusive_share(tmp_path, 1, 2):
        pytest.fail("1 of 2 held beside 0 of 3")


def test_of_two_counts_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    for attempt in range(20):
        folder, all_tried = tmp_path / str(attempt), Event()

        def take(count: int, folder: Path = folder, all_tried: Event = all_tried) -> bool:
            try:
                with exclusive_share(folder, 0, count):
                    all_tried.wait(10)
                    return True
            except UserError:
                all_tried.set()
                return False

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(take, (2, 3))) == [False, True]


# --- leftovers -----------------------------------------------------------------------------------


@pytest.mark.process
def test_what_a_killed_writer_left_is_removed_by_the_next_who_holds_the_lock(
    tmp_path: Path,
) -> None:
    write_facts = partial(write_json, tmp_path / "score.json", {})
    kills = [dies_at_step(number, write_facts) for number in range(3)]
    left = sorted(path.name for path in tmp_path.iterdir() if "tmp" in path.name)
    assert any(kills)
    assert left
    mine = tmp_path / ".score.json"
    mine.write_text("mine")
    with changing(tmp_path, "scores.parquet"):  # another file
        assert sorted(path.name for path in tmp_path.iterdir() if "tmp" in path.name) == left
    with changing(tmp_path, "scores.parquet", "score.json"):
        assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
    assert mine.read_text() == "mine"


# Writes one file again and again, as process 1 of its own namespace.
WRITER = """
import os, sys
from pathlib import Path
from cherry_vllm.store.files import write_json
assert os.getpid() == 1
for number in range(300):
    write_json(Path(sys.argv[1]), {"writer": sys.argv[2], "number": number})
"""


@pytest.mark.process
def test_writers_with_one_process_number_in_two_namespaces_do_not_meet(tmp_path: Path) -> None:
    apart = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs namespaces of its own")
    writers = [
        subprocess.Popen(
            [*apart, sys.executable, "-c", WRITER, str(tmp_path / "score.json"), name],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    ends = [(writer.communicate()[1], writer.returncode) for writer in writers]
    assert ends == [("", 0), ("", 0)]
    assert [path.name for path in tmp_path.iterdir()] == ["score.json"]
