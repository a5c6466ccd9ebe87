"""`cherry-vllm generate`: test sets to questions, questions to answers that `judge` reads."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.job import Job
from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import read_pairs
from tests import fakes
from tests.conftest import Cli, start
from tests.judge_server import JudgeServer
from tests.judging import run_judge

QUESTIONS = [
    {"id": 1, "question": "Name three fruits.", "category": "short"},
    {"id": 2, "question": "Translate.", "input": "Guten Morgen!", "category": "short"},
    {"id": 3, "question": "Explain why " + "very " * 200 + "long questions are hard."},
    {"id": 4, "question": "What is the capital of France?"},
    {"id": 5, "question": "Write one line about cherries."},
]
NO_ANSWERS = (None, "prompt_too_long")


@pytest.fixture(scope="module")
def testset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("testset") / "orchard.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return file


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model folder for the fake engine, which is installed."""
    fakes.install(monkeypatch)
    return fakes.write_checkpoint(tmp_path / "model")


def options(model: Path, testset: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        f"testset.path={testset}",
        f"model.path={model}",
        f"run_dir={run_dir}",
        "engine=hf",
        "engine.dtype=float32",
        "max_length=128",
        "generate.max_new_tokens=12",
        "generate.shard_questions=2",
        *more,
    ]


def run_generate(*overrides: str) -> dict[str, Any]:
    config = compose(*overrides)
    job = Job(Path(config.run_dir), is_sweep=False)
    return generate(config, job).facts


def lines_of(run_dir: Path, name: str = "answers.jsonl") -> list[dict[str, Any]]:
    text = (run_dir / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("testset.path=null", ["testset.path", "not given"]),
        ("testset.path=/no/file", ["/no/file"]),
        ("model.path=null", ["model.path", "not given"]),
        ("generate.temperature=-1", ["generate.temperature=-1"]),
        ("generate.top_p=0", ["generate.top_p=0"]),
        ("generate.top_k=-1", ["generate.top_k=-1"]),
        ("generate.max_new_tokens=0", ["generate.max_new_tokens=0"]),
        ("generate.shard_questions=0", ["generate.shard_questions=0"]),
        ("generate.output=answers.json", ["answers.json", ".jsonl"]),
        *(
            (f"generate.output={name}", [name, "the run keeps for its own files"])
            for name in ("replies.jsonl", "rows/a.jsonl", ".x.jsonl")
        ),
    ],
)
def test_a_wrong_setting_costs_one_line(
    model: Path, testset: Path, tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        run_generate(*options(model, testset, tmp_path / "run", override))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "run" / "answers.jsonl").exists()


@pytest.mark.slow
def test_the_judge_reads_them_and_counts_what_has_no_answer(
    model: Path, testset: Path, judge_server: JudgeServer, tmp_path: Path
) -> None:
    files = (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    for file, prompt in zip(files, ("chat", "vicuna"), strict=True):
        more = (f"generate.output={file.name}", f"prompt={prompt}")
        run_generate(*options(model, testset, tmp_path, *more))
    assert [pair.is_answered for pair in read_pairs(*files)] == [True, True, False, True, True]
    run_judge(tmp_path, f"judge.first={files[0]}", f"judge.second={files[1]}", "judge.model=m")
    assert len(judge_server.replied) == 8  # four pairs, in both orders
    verdicts = pl.read_parquet(tmp_path / "verdicts.parquet")
    assert verdicts.filter(verdict="unanswered")["id"].to_list() == ["3"]
    total = json.loads((tmp_path / "judge.json").read_text())["figures"][0]
    kinds = ("win", "tie", "loss", "unparsed", "failed", "unanswered")
    assert sum(total[kind] for kind in kinds) == total["questions"] == len(QUESTIONS)
    assert total["unanswered"] == 1


def test_what_decides_an_answer_names_it_and_nothing_is_written_twice(
    model: Path, testset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def folders() -> Iterator[Path]:
        return (tmp_path / "answers").iterdir()

    first = run_generate(*options(model, testset, tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*/*.parquet")}
    again = run_generate(*options(model, testset, tmp_path, "seed=5"))  # greedy draws nothing
    assert again == first
    assert "replaced" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    changes = ("generate.max_new_tokens=3", "prompt=vicuna", "generate.temperature=0.5")
    for number, change in enumerate(changes, start=2):
        run_generate(*options(model, testset, tmp_path, change))
        assert len(list(folders())) == number
        assert caplog.text.count("answers of other settings are replaced") == number - 1


def test_jobs_of_a_sweep_never_write_one_file(model: Path, testset: Path, tmp_path: Path) -> None:
    def run(*more: str) -> None:
        config = compose(*options(model, testset, tmp_path, *more))
        generate(config, Job(tmp_path, is_sweep=True))

    with pytest.raises(UserError, match="in a sweep give only a name"):
        run(f"generate.output={tmp_path.parent}/one.jsonl")
    for _ in range(2):
        run()
    with pytest.raises(UserError, match="other settings, which this sweep would replace"):
        run("generate.max_new_tokens=3")


def test_a_file_that_this_command_did_not_write_is_not_replaced(
    model: Path, testset: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "answers.jsonl"
    mine.write_text("my notes")
    with pytest.raises(UserError, match=r"answers\.jsonl: exists and is not what"):
        run_generate(*options(model, testset, tmp_path))
    assert mine.read_text() == "my notes"
    assert not (tmp_path / "answers").exists()
    mine.unlink()
    run_generate(*options(model, testset, tmp_path))
    run_generate(*options(model, testset, tmp_path, "generate.max_new_tokens=3"))
    mine.write_text(mine.read_text().replace("Paris", "Rome") + "\n")
    with pytest.raises(UserError, match=r"answers\.jsonl: exists and is not what"):
        run_generate(*options(model, testset, tmp_path))


def test_the_test_set_is_not_an_output(model: Path, testset: Path, tmp_path: Path) -> None:
    own = tmp_path / "questions.jsonl"
    own.write_bytes(testset.read_bytes())
    for output in ("questions.jsonl", f"../{tmp_path.name}/questions.jsonl"):
        with pytest.raises(UserError, match=r"is testset\.path"):
            run_generate(*options(model, own, tmp_path, f"generate.output={output}"))
    assert own.read_bytes() == testset.read_bytes()


# --- the real engines --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(checkpoint: Path, testset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of the embedded checkpoint, by transformers in fp32."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    run_generate(*options(checkpoint, testset, folder, "prompt=chat"))
    return folder


@pytest.mark.checkpoint
@pytest.mark.engine
def test_every_question_is_answered_or_says_why_not(run_dir: Path) -> None:
    lines = lines_of(run_dir)
    assert [line["id"] for line in lines] == [str(question["id"]) for question in QUESTIONS]
    for line, question in zip(lines, QUESTIONS, strict=True):
        assert line["question"] == question["question"]
        assert line["input"] == question.get("input", "")
        assert line["category"] == question.get("category")
        assert line["testset"] == "orchard"
    assert (lines[2]["answer"], lines[2]["drop_reason"]) == NO_ANSWERS
    assert "Paris" in lines[3]["answer"]
    assert not lines[3]["truncated"]  # the model ended by itself, without its end-of-text in words
    assert "<|im_end|>" not in lines[3]["answer"]
    cut = [line for line in lines if line["truncated"]]
    assert cut
    assert all(line["num_answer_tokens"] == 12 for line in cut)
    meta = json.loads((run_dir / "answers.jsonl.meta.json").read_text())
    counts = meta["counts"]
    assert counts["dropped"] == {"prompt_too_long": 1}
    assert counts["questions"] == sum(counts["answered"].values()) + 1 == len(QUESTIONS)
    assert counts["answered"]["cut at the limit"] == len(cut)
    assert meta["settings"]["decoding"]["max_new_tokens"] == 12


@pytest.mark.checkpoint
@pytest.mark.engine
def test_an_answer_is_what_a_plain_greedy_loop_writes(checkpoint: Path, run_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for line in lines_of(run_dir):
        if line["drop_reason"]:
            continue
        message = "\n\n".join(filter(None, [line["question"], line["input"]]))
        ids: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
        )
        written: list[int] = []
        while len(written) < 12 and tokenizer.eos_token_id not in written:
            with torch.no_grad():
                logits = model(torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
        text = str(tokenizer.decode(written, skip_special_tokens=True))
        assert line["answer"] == text.strip()


@pytest.mark.checkpoint
@pytest.mark.engine
@pytest.mark.process
def test_vllm_writes_the_same_answers(
    checkpoint: Path, testset: Path, run_dir: Path, cli: Cli, tmp_path: Path
) -> None:
    more = ("prompt=chat", "engine=vllm_fused_eager", "engine.dtype=float32")
    done = cli("generate", *options(checkpoint, testset, tmp_path, *more))
    assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path) == lines_of(run_dir)
    assert "max_length=128: the prompts of 1 of 5 questions fill it" in done.stderr


@pytest.mark.engine
@pytest.mark.process
def test_kill_9_and_the_same_command_end_in_the_same_bytes(
    tiny: Path, testset: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("generate.temperature=1", "generate.shard_questions=1", "generate.top_k=50")
    run_generate(*options(tiny, testset, whole, *more))
    process = start("generate", *options(tiny, testset, broken, *more))
    while process.poll() is None and not list(broken.glob("answers/*/part-00001.done")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in broken.glob("answers/*/*.done")}
    assert finished
    run_generate(*options(tiny, testset, broken, *more))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert lines_of(broken) == lines_of(whole)
    texts = {line["answer"] for line in lines_of(whole)}
    other = tmp_path / "other"
    run_generate(*options(tiny, testset, other, *more, "seed=7"))
    assert {line["answer"] for line in lines_of(other)} != texts


@pytest.mark.engine
def test_a_length_that_the_model_cannot_take_costs_one_line(
    tiny: Path, testset: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"max_length=100000.*512"):
        run_generate(*options(tiny, testset, tmp_path, "max_length=100000"))
