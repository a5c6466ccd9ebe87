"""Serves a model at an OpenAI-compatible endpoint on this machine: vLLM's own server, on CPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

START_S = 400
# JSON without spaces between its parts: a small model would fill its reply with them.
STRUCTURED_OUTPUTS = '{"backend": "xgrammar", "disable_any_whitespace": true}'


class ServerError(Exception):
    """The server is not up; the message ends with the end of its log."""


class Running(NamedTuple):
    address: str  # http://127.0.0.1:PORT
    pid: int  # of the process group, too

    def signal(self, number: int) -> None:
        """Sends a signal to the server and its engine, unless they have ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextmanager
def serve(model: Path, log: Path, *, name: str = "judge", max_length: int = 1024) -> Iterator[str]:
    """Runs the server until the block ends; yields its address, ``http://127.0.0.1:PORT``.

    Raises:
        ServerError: it ended, or did not start in time.
    """
    with run_server(model, log, name=name, max_length=max_length, num_seqs=4) as running:
        yield running.address


@contextmanager
def run_server(
    model: Path,
    log: Path,
    *,
    name: str,
    max_length: int,
    num_seqs: int = 256,
    cores: Sequence[int] = (),
    arguments: Sequence[str] = (),
) -> Iterator[Running]:
    """Runs the server until the block ends, on the given cores or on all.

    Raises:
        ServerError: it ended, or did not start in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--enforce-eager",
        "--max-model-len",
        str(max_length),
        "--max-num-seqs",
        str(num_seqs),
    ]
    command += arguments
    command += ["--structured-outputs-config", STRUCTURED_OUTPUTS]
    bound = ",".join(map(str, cores or sorted(os.sched_getaffinity(0))))
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": bound}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=defaults | os.environ | {"NO_PROXY": "127.0.0.1"},
            start_new_session=True,  # the engine is another process, which must end as well
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(address, process, log)
        yield Running(address, process.pid)
    finally:
        Running(address, process.pid).signal(signal.SIGKILL)
        process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"it ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            get(f"{address}/health")
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise ServerError(f"it was not up after {START_S} s: {log.read_text()[-2000:]}")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310
        return str(reply.read().decode())
