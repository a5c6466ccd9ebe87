"""`engine=vllm_server` on two real servers, `vllm serve` on CPU; one of them dies in the middle."""

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from bench.server import Running, ServerError, get, run_server
from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.score import score
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from tests.conftest import Cli, start
from tests.fakes import stages_in_this_process
from tests.runs import NUM_ROWS, assert_refused, command, stamps, wait_for_shards

pytestmark = [pytest.mark.engine, pytest.mark.process]

MISSING_PIECE = re.compile(r"(?:ModuleNotFoundError|ImportError): .*")
KEY = "a-secret-of-the-servers"
SHARD_ROWS = 12
NUM_SHARDS = NUM_ROWS // SHARD_ROWS
SCORES = ("conditioned_score", "direct_score", "ifd")


class Servers(NamedTuple):
    model: Path
    all: list[Running]

    def options(self, *addresses: str, **changes: float) -> list[str]:
        given = {"engine.timeout_s": 60, "engine.max_tries": 1, "engine.patience_s": 30} | changes
        return [
            "engine=vllm_server",
            f"engine.base_url=[{','.join(addresses or [it.address for it in self.all])}]",
            "engine.model=m",
            "engine.api_key_env=SERVER_KEY",
            f"shard_rows={SHARD_ROWS}",
            *(f"{key}={value}" for key, value in given.items()),
        ]


@pytest.fixture(scope="module")
def servers(tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    logs = [tmp_path_factory.mktemp("serve") / "log.txt" for _ in range(2)]
    # Without offers of other ways, and in the type of the checkpoint, which "auto" would round.
    arguments = ["--dtype", "float32", "--api-key", KEY, "--enable-scale-out"]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVER_KEY", KEY)
        contexts = [
            run_server(
                tiny_for_vllm, log, name="m", max_length=513, num_seqs=8, arguments=arguments
            )
            for log in logs
        ]
        try:
            with ThreadPoolExecutor() as pool:  # both start at once
                entered = list(pool.map(stack.enter_context, contexts))
        except ServerError as failure:
            if missing := MISSING_PIECE.findall("".join(log.read_text() for log in logs)):
                pytest.skip(f"vLLM's server lacks an installed piece: {missing[-1]}")
            pytest.fail(str(failure))
        yield Servers(tiny_for_vllm, entered)


@pytest.fixture(scope="module")
def expected(
    data: Path, tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory
) -> pl.DataFrame:
    """The scores of a plain forward pass in fp32."""
    run_dir = tmp_path_factory.mktemp("expected")
    with stages_in_this_process():
        score(compose(*command(data, tiny_for_vllm, run_dir)[1:]), Job(run_dir, is_sweep=False))
    return pl.read_parquet(run_dir / "scores.parquet")


def assert_close(run_dir: Path, expected: pl.DataFrame) -> None:
    found = pl.read_parquet(run_dir / "scores.parquet")
    assert found["num_answer_tokens"].equals(expected["num_answer_tokens"])
    for name in SCORES:
        assert (found[name] - expected[name]).abs().max() < 1e-4  # type: ignore[operator]


def num_answered(server: Running) -> int:
    """Requests that a server has answered to their end, by its own count."""
    pattern = r'^vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\} (\S+)$'
    found = re.findall(pattern, get(f"{server.address}/metrics"), re.MULTILINE)
    return int(sum(map(float, found)))


def test_two_servers_give_the_scores_of_a_plain_forward_pass(
    servers: Servers, data: Path, expected: pl.DataFrame, cli: Cli, tmp_path: Path
) -> None:
    done = cli(*command(data, servers.model, tmp_path, *servers.options()))
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path, expected)
    (record,) = tmp_path.glob("logprobs/*/served.json")
    assert json.loads(record.read_text())["system_fingerprints"][0].startswith("vllm-")
    said = done.stdout + done.stderr
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert KEY not in said
    assert not any(KEY.encode() in content for content in written)


def test_answers_are_those_of_a_plain_greedy_loop(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    testset = tmp_path / "question.jsonl"
    texts = ("Name three fruits.", "What is the capital of France?", "Why?")
    lines = (json.dumps({"question_id": n, "text": text}) for n, text in enumerate(texts))
    testset.write_text("".join(f"{line}\n" for line in lines))
    answers = []
    for name, engine in (("hf", ["engine=hf"]), ("server", servers.options())):
        config = compose(
            "testset=vicuna",
            "testset.columns.category=null",
            f"testset.path={testset}",
            f"model.path={servers.model}",
            f"run_dir={tmp_path / name}",
            "generate.max_new_tokens=12",
            "prompt=vicuna",
            "max_length=256",
            *engine,
        )
        generate(config, Job(tmp_path / name, is_sweep=False))
        answers.append((tmp_path / name / "answers.jsonl").read_text())
    assert answers[0] == answers[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["engine.model=other"], r"serves m, not other; .*engine\.model"),
        (["max_length=513"], r"takes 513 tokens, but 514 .*--max-model-len 514"),
        (["engine.api_key_env=null"], r"HTTP 401.*engine\.api_key_env"),
        (["engine.dtype=float32"], r"the servers decide on the type"),
    ],
)
def test_what_does_not_fit_costs_one_line(
    servers: Servers, data: Path, tmp_path: Path, changes: list[str], words: str
) -> None:
    given = command(data, servers.model, tmp_path, *servers.options(), *changes)[1:]
    with pytest.raises(UserError, match=words):
        score(compose(*given), Job(tmp_path, is_sweep=False))
    assert not list(tmp_path.glob("logprobs"))


def test_a_server_that_hangs_ends_the_run_in_one_line_and_another_resumes_it(
    servers: Servers, data: Path, expected: pl.DataFrame, cli: Cli, tmp_path: Path
) -> None:
    first, second = servers.all
    hasty = {"engine.timeout_s": 10, "engine.patience_s": 3}
    process = start(
        *command(data, servers.model, tmp_path, *servers.options(second.address, **hasty))
    )
    wait_for_shards(process, tmp_path, 3)
    second.signal(signal.SIGSTOP)
    _, stderr = process.communicate()
    second.signal(signal.SIGCONT)
    assert process.returncode == 2, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("cherry-vllm: ")]
    assert "no server has answered for 3 s" in line
    finished = stamps(tmp_path)
    assert 3 <= len(finished) < NUM_SHARDS
    done = cli(*command(data, servers.model, tmp_path, *servers.options(first.address)))
    assert done.returncode == 0, done.stderr
    assert finished.items() <= stamps(tmp_path).items()
    assert_close(tmp_path, expected)


def test_the_work_of_a_server_that_is_killed_goes_to_the_other(
    servers: Servers, data: Path, expected: pl.DataFrame, cli: Cli, tmp_path: Path
) -> None:
    _, second = servers.all
    before = [num_answered(server) for server in servers.all]
    process = start(*command(data, servers.model, tmp_path, *servers.options()))
    wait_for_shards(process, tmp_path, 3)
    shares = [num_answered(it) - n for it, n in zip(servers.all, before, strict=True)]
    second.signal(signal.SIGKILL)
    assert min(shares) >= SHARD_ROWS, "one server did all the work"
    assert len(stamps(tmp_path)) < NUM_SHARDS
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert f"{second.address}: no connection" in stderr
    assert_close(tmp_path, expected)
    assert not list(tmp_path.glob("logprobs/*/failures.log"))

    alone = servers.options(second.address)
    refused = cli(*command(data, servers.model, tmp_path / "other", *alone))
    assert_refused(refused, second.address, "no server answers")
