"""The judge against a real endpoint: a local `vllm serve` on CPU, and a whole round with it."""

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
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.server import ServerError, get, serve
from cherry_vllm.config import compose
from tests.conftest import Cli, start
from tests.test_exports import run_dir as scored_run  # noqa: F401
from tests.test_judge_verdicts import FIRST, SECOND

NUM_REQUESTS = 10  # five pairs, in both orders
MISSING_PIECE = re.compile(r"(?:ModuleNotFoundError|ImportError): .*")
KINDS = ("win", "tie", "loss", "unparsed", "failed", "unanswered")


class Endpoint(NamedTuple):
    root: str

    def num_answered(self) -> int:
        """Requests that the server has answered to their end, by its own count."""
        pattern = r'^vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\} (\S+)$'
        return int(sum(map(float, re.findall(pattern, get(f"{self.root}/metrics"), re.MULTILINE))))

    def num_under_way(self) -> int:
        pattern = r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$"
        return int(sum(map(float, re.findall(pattern, get(f"{self.root}/metrics"), re.MULTILINE))))

    def options(self, run_dir: Path, first: Path = FIRST, second: Path = SECOND) -> list[str]:
        return [
            f"judge.first={first}",
            f"judge.second={second}",
            f"run_dir={run_dir}",
            f"judge.base_url={self.root}/v1",
            "judge.model=judge",
            "judge.api_key_env=null",
            "judge.parameters.max_tokens=16",
        ]


@pytest.fixture(scope="module")
def endpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """The embedded checkpoint, served."""
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    try:
        with serve(checkpoint, log) as address:
            yield Endpoint(address)
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
    assert {kind: total[kind] for kind in KINDS} == {
        kind: verdicts.filter(verdict=kind).height for kind in KINDS
    }
    return verdicts


def test_a_killed_judge_asks_the_server_nothing_twice(
    endpoint: Endpoint, cli: Cli, tmp_path: Path
) -> None:
    before = endpoint.num_answered()
    # One request at a time, so that the kill meets one at most.
    process = start("judge", *endpoint.options(tmp_path), "judge.concurrency=1")
    while process.poll() is None and len(replies_of(tmp_path)) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stored = replies_of(tmp_path)
    assert 3 <= len(stored) < NUM_REQUESTS
    assert not (tmp_path / "judge.json").exists()
    while endpoint.num_under_way():
        time.sleep(0.1)
    at_kill = endpoint.num_answered()
    assert at_kill - before - len(stored) in (0, 1)

    done = cli("judge", *endpoint.options(tmp_path))
    assert done.returncode == 0, done.stderr
    assert endpoint.num_answered() - at_kill == NUM_REQUESTS - len(stored)
    replies = replies_of(tmp_path)
    assert replies[: len(stored)] == stored
    assert len({reply["request"] for reply in replies}) == len(replies) == NUM_REQUESTS
    assert {reply["model"] for reply in replies} == {"judge"}
    assert all(reply["text"] for reply in replies)
    assert "winning score" in done.stdout
    verdicts = check_counts(tmp_path, 5)

    again = cli("judge", *endpoint.options(tmp_path))
    assert again.returncode == 0, again.stderr
    assert endpoint.num_answered() - at_kill == NUM_REQUESTS - len(stored)
    assert pl.read_parquet(tmp_path / "verdicts.parquet").equals(verdicts)


def test_a_model_that_the_server_does_not_have_costs_one_line(
    endpoint: Endpoint, cli: Cli, tmp_path: Path
) -> None:
    done = cli("judge", *endpoint.options(tmp_path), "judge.model=other")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cherry-vllm: ")]
    assert "HTTP 404" in line
    assert "judge.model" in line


@pytest.fixture(scope="module")
def disturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with a little noise on its weights: another model, though not by much."""
    folder = tmp_path_factory.mktemp("models") / "disturbed"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05 * float(weight.std()))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def test_a_whole_round_from_two_models_to_a_table(
    endpoint: Endpoint, checkpoint: Path, disturbed: Path, cli: Cli, tmp_path: Path
) -> None:
    questions = ["Name three fruits.", "What is the capital of France?", "why? " * 300]
    testset = tmp_path / "question.jsonl"
    lines = (
        {"question_id": number, "text": text, "category": "generic"}
        for number, text in enumerate(questions)
    )
    testset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, model in (("first", checkpoint), ("second", disturbed)):
        done = cli(
            "generate",
            "testset=vicuna",
            f"testset.path={testset}",
            f"model.path={model}",
            f"run_dir={tmp_path}",
            f"generate.output={name}.jsonl",
            "generate.max_new_tokens=16",
            "engine=hf",
            "prompt=chat",
            "max_length=256",
        )
        assert done.returncode == 0, done.stderr
    files = (tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    answers = [[json.loads(line)["answer"] for line in open_lines(file)] for file in files]
    assert "Paris" in answers[0][1]
    assert answers[0] != answers[1]
    assert [both[2] for both in answers] == [None, None]
    before = endpoint.num_answered()
    # A model of this size scores nothing of its own accord; the server holds it to the format.
    scores = "+judge.parameters.structured_outputs.regex='[1-9] [1-9]'"
    done = cli("judge", *endpoint.options(tmp_path, *files), scores)
    assert done.returncode == 0, done.stderr
    verdicts = check_counts(tmp_path, 3)
    assert verdicts["verdict"].is_in(["win", "tie", "loss"]).to_list() == [True, True, False]
    assert verdicts["verdict"][2] == "unanswered"
    asked = {*verdicts["request"], *verdicts["request_reversed"]} - {None}
    assert endpoint.num_answered() - before == len(replies_of(tmp_path)) == len(asked)
    header, row, *_ = [line.split() for line in done.stdout.splitlines()]
    counts = dict(zip(header, row[1:], strict=False))
    assert row[0] == "vicuna"
    assert sum(int(counts[kind]) for kind in KINDS) == int(counts["questions"]) == 3


def test_the_server_rates_instructions_aspect_by_aspect(
    endpoint: Endpoint,
    cli: Cli,
    scored_run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    names = list(compose("judge=aspects").judge.aspects)
    form = "\\n".join(f"{name}: [0-9]" for name in names)
    done = cli(
        "judge",
        "judge=aspects",
        "judge.count=2",
        f"scores_dir={scored_run}",
        *endpoint.options(tmp_path)[2:],
        "judge.parameters.max_tokens=60",
        f"+judge.parameters.structured_outputs.regex='{form}'",
    )
    assert done.returncode == 0, done.stderr
    ratings = pl.read_parquet(tmp_path / "aspects.parquet")
    assert ratings["side"].to_list() == ["top", "top", "least", "least"]
    assert ratings["reason"].null_count() == 4
    assert ratings.select(names).null_count().sum_horizontal().item() == 0
    assert len(replies_of(tmp_path)) == ratings["request"].n_unique()
    assert "Knowledge Required" in done.stdout


def open_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
