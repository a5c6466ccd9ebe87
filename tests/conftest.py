import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hypothesis import settings

from cherry_vllm.commands import demo
from tests.judge_server import JudgeServer
from tests.judging import KEY
from tests.runs import DEADLY, DEADLY_ROW, NUM_ROWS, command, plain_answer, write_rows

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
ROWS = Path(__file__).parent / "data" / "rows.jsonl"
TOKENIZER = Path(__file__).parent / "data" / "tokenizer"  # ChatML, 2,000 tokens

# Side by side, test processes share the cores out: threads that wait for each other's core crawl.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own or cores)

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any_machine", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("any_machine")

LONG = ("checkpoint", "engine", "process", "browser", "slow")
LONGEST = [  # from two to four minutes each
    "workers/test_survival.py",
    "commands/test_score_servers.py",
    "commands/test_pipeline.py",
    "engines/test_vllm.py",
    "training/test_run.py",
]

Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with long tests first, so that the processes of `make test` end together."""
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    longest = [ROOT / "tests" / name for name in LONGEST]
    items.sort(key=lambda item: (item.path not in longest, item.path not in long))


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra takes 0.2 seconds to compose a configuration; many tests ask for the same ones.

    What comes from the environment is resolved later, in each copy.
    """
    known: dict[tuple[str, ...], Any] = {}
    compose = hydra.compose

    def compose_once(name: str, overrides: list[str]) -> Any:
        key = (name, *overrides)
        if key not in known:
            known[key] = compose(name, overrides)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", compose_once)
        yield


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The embedded checkpoint, fetched once into the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return demo.fetch(Path(home) / "cherry-vllm") / demo.CHECKPOINT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of two narrow layers, with the tokenizer in ``tests/data``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_for_vllm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny``, with heads as wide as vLLM's attention takes them on any CPU, and longer.

    Its head is its own: tied, a random model repeats the prompt's last token, a line break.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny_for_vllm")
    config = AutoConfig.from_pretrained(
        tiny, max_position_embeddings=2048, head_dim=32, tie_word_embeddings=False
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shipped_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def alpaca() -> Path:
    path = SHARED / "alpaca_5000.jsonl"
    if not path.is_file():
        pytest.skip("needs 5,000 Alpaca rows that are not part of the project")
    return path


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge on the loopback interface, which the environment names; SOME_KEY holds a key too."""
    server = JudgeServer()
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Starts the real command line in a process of its own."""
    command = [sys.executable, "-m", "cherry_vllm", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(pid: int) -> list[int]:
    """The sessions that a process has started and that still are, as every ``Child`` is one.

    Programs that it runs in passing, as ``ctypes`` does to find a library, are none.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, parent, _, session, *_ = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and session == folder.name:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Runs the real command line to its end."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, cwd=cwd)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are quickly scored, of one turn or two; one may be deadly (``tests/faults``)."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    answers = [plain_answer(number) for number in range(NUM_ROWS)]
    answers[DEADLY_ROW] = f"{DEADLY} {answers[DEADLY_ROW]}"
    return write_rows(path, answers, with_talks=True)


@pytest.fixture(scope="session")
def undisturbed(data: Path, tiny: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = cli(*command(data, tiny, folder))
    assert done.returncode == 0, done.stderr
    return folder
