"""`cherry-vllm judge` as a user meets it: a whole run, a killed one, a wrong one, and the key."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.commands.inputs import Job
from cherry_vllm.commands.judge import judge
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from tests.conftest import Cli, start
from tests.judge_server import Fault, JudgeServer
from tests.test_cli import assert_refused
from tests.test_judge_verdicts import FIRST, REVIEWS, SECOND

KEY = "sk-0123456789-secret"
ANSWERS = (f"judge.first={FIRST}", f"judge.second={SECOND}", "judge.model=m")
QUICK = ("judge.backoff_s=0.05", "judge.timeout_s=2", "judge.concurrency=2")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    server = JudgeServer()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def run_judge(run_dir: Path, *overrides: str) -> None:
    """The stage in this process, which spares the start of another."""
    config = compose(f"run_dir={run_dir}", *overrides)
    judge(config, Job(run_dir, is_sweep=False))


def test_a_run_leaves_verdicts_and_figures_and_asks_once(
    server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda _user, index: None if index else Fault(500)
    run_judge(tmp_path, *ANSWERS, *QUICK)
    assert "winning score" in capsys.readouterr().out
    verdicts = pl.read_parquet(tmp_path / "verdicts.parquet")
    assert verdicts["id"].to_list() == ["1", "2", "m-1", "m-2", "m-3"]
    # The server gives a point per word.
    assert verdicts["verdict"].to_list() == ["win", "tie", "loss", "win", "loss"]
    figures = json.loads((tmp_path / "judge.json").read_text())["figures"]
    assert [row["category"] for row in figures] == [None, "short", "long"]
    assert [row["questions"] for row in figures] == [5, 2, 2]
    assert set(server.replied.values()) == {1}
    assert len(server.replied) == 10

    run_judge(tmp_path, *ANSWERS, f"judge.against={tmp_path / 'verdicts.parquet'}")
    assert "100.0% of 5 questions, Cohen's kappa 1.000" in capsys.readouterr().out
    run_judge(tmp_path, *ANSWERS, f"judge.against={REVIEWS}")
    assert "no question that both judges decided" in capsys.readouterr().out
    assert sum(server.replied.values()) == 10


def test_kill_9_and_the_same_command_pays_for_no_reply_twice(
    server: JudgeServer, cli: Cli, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_judge(whole, *ANSWERS)
    server.replied.clear()
    server.reply_limit = 4
    process = start("judge", *ANSWERS, "judge.concurrency=2", f"run_dir={broken}")
    stored = broken / "replies.jsonl"
    while process.poll() is None:
        if stored.exists() and stored.read_bytes().count(b"\n") == 4:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (broken / "judge.json").exists()
    with stored.open("ab") as file:
        file.write(b'{"request": "0123456789abcdef", "text": "8 ')  # what a kill may tear
    server.reply_limit = None
    again = cli("judge", *ANSWERS, f"run_dir={broken}")
    assert again.returncode == 0, again.stderr
    assert set(server.replied.values()) == {1}
    assert len(server.replied) == 10
    for name in ("verdicts.parquet", "judge.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_the_key_is_sent_and_appears_nowhere_else(
    server: JudgeServer,
    cli: Cli,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    echo = '{"error": {"message": "bad key: {key}", "code": "{key}"}}'
    server.script = lambda user, _index: (
        Fault(400, echo) if "fruit" in user else Fault(500, echo) if "colour" in user else None
    )
    run_judge(tmp_path, *ANSWERS, *QUICK, "judge.max_tries=2")
    assert "4 requests have no reply" in caplog.text
    server.script = lambda _user, _index: Fault(401, echo)
    refused = cli("judge", *ANSWERS, *QUICK, f"run_dir={tmp_path}")
    assert_refused(refused, "HTTP 401", "bad key", "judge.api_key_env")
    with pytest.raises(UserError, match="not the key") as mistaken:
        run_judge(tmp_path, *ANSWERS, f"judge.api_key_env={KEY}")
    assert {request.authorization for request in server.received} == {f"Bearer {KEY}"}
    outputs = [refused.stdout, refused.stderr, *capsys.readouterr(), caplog.text]
    outputs += [str(mistaken.value), repr(compose())]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"replies.jsonl", "verdicts.parquet", "judge.json"}
    outputs += [path.read_bytes().decode("latin-1") for path in files]
    assert not any(KEY in text for text in outputs)


def test_recorded_reviews_need_no_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run_judge(tmp_path, f"judge.reviews={REVIEWS}")
    shown = capsys.readouterr().out
    assert "position bias: 2 of 6 verdicts flip" in shown  # of all questions, not of a category
    table = [line.split() for line in shown.splitlines()]
    assert table[1][:9] == ["orchard", "7", "2", "3", "1", "1", "0", "0", "2"]
    assert table[1][9] == "1.167"
    assert not (tmp_path / "replies.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["judge.first", "not given"]),
        ([*ANSWERS[:2]], ["judge.model", "not given"]),
        ([*ANSWERS], ["OPENAI_API_KEY", "judge.api_key_env=null"]),
        ([*ANSWERS, "judge.first=/no/a.jsonl"], ["/no/a.jsonl"]),
        ([*ANSWERS, "judge.concurrency=0"], ["judge.concurrency=0", "above 0"]),
        ([*ANSWERS, "+judge.parameters.stream=true"], ["judge.parameters.stream"]),
        ([f"judge.reviews={REVIEWS}", *ANSWERS], ["judge.reviews", "judge.first"]),
        (["judge.reviews=[1]"], ["judge.reviews"]),
        (["judge=rating", *ANSWERS], ["judge=rating", "data.path"]),
        (["judge=rating", "judge.model=m"], ["data.path", "not given"]),
        ([f"judge.reviews={FIRST}"], [str(FIRST), "reviews"]),
        ([f"judge.reviews={REVIEWS}", f"judge.against={FIRST}"], [str(FIRST), "verdicts.parquet"]),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: list[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError) as error:
        run_judge(tmp_path / "run", *overrides)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_without_a_key_and_parameters_of_ones_own(
    server: JudgeServer, tmp_path: Path
) -> None:
    own = ("judge.api_key_env=null", "~judge.parameters.max_tokens", "+judge.parameters.seed=5")
    run_judge(tmp_path, *ANSWERS, *own)
    request = server.received[0]
    assert KEY not in str(request.authorization)
    assert set(request.body) == {"messages", "model", "temperature", "seed"}
    assert (request.body["temperature"], request.body["seed"]) == (0, 5)


def test_rating_gives_every_input_row_a_rating_or_a_reason(
    server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    words = [1, 5, 9, 0, 3]
    rows = [{"instruction": f"{n} words", "output": " ".join(["x"] * n)} for n in words]
    data.write_text("\n".join([*map(json.dumps, rows), "{"]))
    server.script = lambda user, _index: Fault(400) if "3 words" in user else None
    run_dir = tmp_path / "run"
    command = ("judge=rating", f"data.path={data}", "judge.model=m")
    run_judge(run_dir, *command)
    ratings = pl.read_parquet(run_dir / "ratings.parquet")
    assert ratings["row"].to_list() == list(range(6))
    assert ratings["rating"].to_list() == [1, 5, None, None, None, None]
    reasons = ["unparsed", "empty_answer", "failed", "malformed"]
    assert ratings["reason"].to_list() == [None, None, *reasons]
    assert ratings["request"].null_count() == 2
    shown = capsys.readouterr().out.split("\n")
    assert [line.split() for line in shown[:3]] == [
        ["rows", "6"],
        ["rated", "2"],
        ["4.5", "or", "higher", "1"],
    ]
    server.script = lambda _user, _index: None
    run_judge(run_dir, *command)
    assert pl.read_parquet(run_dir / "ratings.parquet")["rating"][4] == 3
    assert set(server.replied.values()) == {1}
    counts = json.loads((run_dir / "ratings.json").read_text())["counts"]
    assert counts["rows"] == counts["rated"] + counts["unparsed"] + 2
