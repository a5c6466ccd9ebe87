"""The judge against a real endpoint, `vllm serve` on CPU, and a whole round with it."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from bench.server import ServerError, get, serve
from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.score import score
from cherry_vllm.config import compose
from tests.conftest import ROWS, start
from tests.judging import FIRST, SECOND, run_judge

pytestmark = [pytest.mark.engine, pytest.mark.process]

MAX_LENGTH = 2048
NUM_REQUESTS = 10  # five pairs, in both orders
MISSING_PIECE = re.compile(r"(?:ModuleNotFoundError|ImportError): .*")
KINDS = ("win", "tie", "loss", "unparsed", "failed", "unanswered")


class Server(NamedTuple):
    root: str

    def num_answered(self) -> int:
        """Requests that the server has answered to their end, by its own count."""
        pattern = r'^vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\} (\S+)$'
        return int(sum(map(float, re.findall(pattern, get(f"{self.root}/metrics"), re.MULTILINE))))

    def num_under_way(self) -> int:
        pattern = r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$"
        return int(sum(map(float, re.findall(pattern, get(f"{self.root}/metrics"), re.MULTILINE))))

    def options(self, *more: str) -> list[str]:
        return [
            f"judge.base_url={self.root}/v1",
            "judge.model=judge",
            "judge.api_key_env=null",
            "judge.parameters.max_tokens=64",
            *more,
        ]

    def pair_options(self, first: Path = FIRST, second: Path = SECOND) -> list[str]:
        return self.options(f"judge.first={first}", f"judge.second={second}")


@pytest.fixture(scope="module")
def server(tiny_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two random layers, served: what they say is noise, in the form that the server enforces."""
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    try:
        with serve(tiny_for_vllm, log, max_length=MAX_LENGTH) as address:
            yield Server(address)
    except ServerError as failure:
        if missing := MISSING_PIECE.findall(log.read_text()):
            pytest.skip(f"vLLM's server lacks an installed piece: {missing[-1]}")
        pytest.fail(str(failure))


def replies_of(run_dir: Path) -> list[dict[str, str]]:
    file = run_dir / "replies.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def check_counts(run_dir: Path, num_questions: int) -> pl.DataFrame:
    """Every question has one verdict, which its replies bear out; the table adds up."""
    verdicts = pl.read_parquet(run_dir / "verdicts.parquet")
    stored = {reply["request"] for reply in replies_of(run_dir)}
    assert verdicts.height == num_questions
    for row in verdicts.filter(pl.col("verdict") != "unanswered").iter_rows(named=True):
        assert {row["request"], row["request_reversed"]} <= stored
        is_scored = row["first_score"] is not None and row["first_score_reversed"] is not None
        assert (row["verdict"] == "unparsed") == (not is_scored)
    total = json.loads((run_dir / "judge.json").read_text())["figures"][0]
    assert sum(total[kind] for kind in KINDS) == total["questions"] == num_questions
    return verdicts


def test_structured_outputs_give_two_scores_even_by_a_random_model(
    server: Server, tmp_path: Path
) -> None:
    run_judge(tmp_path, *server.pair_options())
    verdicts = check_counts(tmp_path, 5)
    assert verdicts["verdict"].is_in(["win", "tie", "loss"]).all()
    for reply in replies_of(tmp_path):
        assert re.match(r'\{\s*"assistant_1":\s*\d', reply["text"])
        assert reply["model"] == "judge"


def test_in_words_a_random_model_scores_nothing_and_says_so(server: Server, tmp_path: Path) -> None:
    run_judge(tmp_path, *server.pair_options(), "judge.response_format=text")
    assert set(check_counts(tmp_path, 5)["verdict"]) == {"unparsed"}


def test_a_killed_judge_asks_the_server_nothing_twice(server: Server, tmp_path: Path) -> None:
    before = server.num_answered()
    # One request at a time, so that the kill meets one at most.
    process = start("judge", *server.pair_options(), "judge.concurrency=1", f"run_dir={tmp_path}")
    while process.poll() is None and len(replies_of(tmp_path)) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stored = replies_of(tmp_path)
    assert 3 <= len(stored) < NUM_REQUESTS
    assert not (tmp_path / "judge.json").exists()
    while server.num_under_way():
        time.sleep(0.1)
    at_kill = server.num_answered()
    assert at_kill - before - len(stored) in (0, 1)

    run_judge(tmp_path, *server.pair_options())
    assert server.num_answered() - at_kill == NUM_REQUESTS - len(stored)
    replies = replies_of(tmp_path)
    assert replies[: len(stored)] == stored
    assert len({reply["request"] for reply in replies}) == len(replies) == NUM_REQUESTS
    verdicts = check_counts(tmp_path, 5)

    run_judge(tmp_path, *server.pair_options())
    assert server.num_answered() - at_kill == NUM_REQUESTS - len(stored)
    assert pl.read_parquet(tmp_path / "verdicts.parquet").equals(verdicts)


def test_a_model_that_the_server_does_not_have_costs_one_line(
    server: Server, tmp_path: Path
) -> None:
    process = start("judge", *server.pair_options(), "judge.model=other", f"run_dir={tmp_path}")
    _, stderr = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in stderr.splitlines() if line.startswith("cherry-vllm: ")]
    assert "HTTP 404" in line
    assert "judge.model" in line


def test_a_whole_round_from_answers_to_a_table(
    server: Server, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["Name three fruits.", "What is the capital of France?", "why? " * 300]
    testset = tmp_path / "question.jsonl"
    lines = (
        {"question_id": number, "text": text, "category": "generic"}
        for number, text in enumerate(questions)
    )
    testset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    for file, temperature in zip(files, (0, 1), strict=True):
        config = compose(
            "testset=vicuna",
            f"testset.path={testset}",
            f"model.path={tiny}",
            f"run_dir={tmp_path}",
            f"generate.output={file.name}",
            f"generate.temperature={temperature}",
            "generate.max_new_tokens=16",
            "engine=hf",
            "prompt=chat",
            "max_length=256",
        )
        generate(config, Job(tmp_path, is_sweep=False))
    capsys.readouterr()
    before = server.num_answered()
    run_judge(tmp_path, *server.pair_options(*files))
    verdicts = check_counts(tmp_path, 3)
    assert verdicts["verdict"].is_in(["win", "tie", "loss"]).to_list() == [True, True, False]
    assert verdicts["verdict"][2] == "unanswered"
    asked = {*verdicts["request"], *verdicts["request_reversed"]} - {None}
    assert server.num_answered() - before == len(replies_of(tmp_path)) == len(asked)
    header, row, *_ = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = dict(zip(header, row[1:], strict=False))
    assert row[0] == "vicuna"
    assert sum(int(counts[kind]) for kind in KINDS) == int(counts["questions"]) == 3


def test_the_server_rates_instructions_aspect_by_aspect(
    server: Server, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = tmp_path / "scored"
    overrides = (f"data.path={ROWS}", f"model.path={tiny}", "max_length=128", "engine=hf")
    score(compose(f"run_dir={scored}", *overrides), Job(scored, is_sweep=False))
    rated = ("judge=aspects", "judge.count=2", f"scores_dir={scored}")
    run_judge(tmp_path, *rated, *server.options("judge.parameters.max_tokens=200"))
    names = list(compose("judge=aspects").judge.aspects)
    ratings = pl.read_parquet(tmp_path / "aspects.parquet")
    assert ratings["side"].to_list() == ["top", "top", "least", "least"]
    assert ratings["reason"].null_count() == 4
    assert ratings.select(names).null_count().sum_horizontal().item() == 0
    assert len(replies_of(tmp_path)) == ratings["request"].n_unique()
    assert "Knowledge Required" in capsys.readouterr().out
