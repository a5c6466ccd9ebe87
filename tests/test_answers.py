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
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.inputs import Job
from cherry_vllm.config import compose
from cherry_vllm.engines import Decoding, build_generator, until_stop
from cherry_vllm.engines.checkpoint import read_checkpoint, read_stop_ids
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import read_pairs
from cherry_vllm.evaluation.testsets import QuestionColumns, read_questions
from tests.conftest import SHARED, Cli, start
from tests.judge_server import JudgeServer
from tests.test_judge_cli import run_judge, server  # noqa: F401 - a fixture

# One record of each published set, as it is published.
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[str, str | None, str, str]]] = {
    "vicuna": (
        {"question_id": 7, "text": "Why?", "category": "generic"},
        ("7", "generic", "Why?", ""),
    ),
    "koala": ({"id": "koala_3", "prompt": "How?"}, ("koala_3", None, "How?", "")),
    "wizardlm": (
        {"idx": 2, "Skill": "Math", "Difficulty": 1, "Instruction": "Add."},
        ("2", "Math", "Add.", ""),
    ),
    "sinstruct": (
        {
            "id": "user_oriented_task_0",
            "motivation_app": "Mail",
            "instruction": "Shorten.",
            "instances": [{"input": "Far too long.", "output": "Long."}],
        },
        ("user_oriented_task_0", "Mail", "Shorten.", "Far too long."),
    ),
    "lima": ({"conversations": ["Plan a trip."], "source": "x"}, ("0", None, "Plan a trip.", "")),
    "file": ({"id": "a", "question": "Who?", "input": None}, ("a", None, "Who?", "")),
}
REAL = {"vicuna": 80, "koala": 180, "wizardlm": 218, "sinstruct": 252, "lima": 300}
QUESTIONS = [
    {"id": 1, "question": "Name three fruits.", "category": "short"},
    {"id": 2, "question": "Translate.", "input": "Guten Morgen!", "category": "short"},
    {"id": 3, "question": "Explain why " + "very " * 200 + "long questions are hard."},
    {"id": 4, "question": "What is the capital of France?"},
    {"id": 5, "question": "Write one line about cherries."},
]
NO_ANSWERS = (None, "prompt_too_long")


def columns_of(testset: str) -> QuestionColumns:
    columns = compose(f"testset={testset}").testset.columns
    return QuestionColumns(columns.id, columns.question, columns.input, columns.category)


def read(file: Path, testset: str = "file") -> pl.DataFrame:
    name = compose(f"testset={testset}").testset.name
    return read_questions(file, name=name, columns=columns_of(testset))


@pytest.fixture(scope="module")
def testset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("testset") / "orchard.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return file


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


# --- test sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("testset", list(PUBLISHED))
@pytest.mark.parametrize("shape", ["{}", "[{}]"])
def test_a_published_record_is_read_by_its_own_field_names(
    tmp_path: Path, testset: str, shape: str
) -> None:
    record, expected = PUBLISHED[testset]
    file = tmp_path / "questions.json"
    file.write_text(shape.replace("{}", json.dumps(record)))
    (line,) = read(file, testset).iter_rows()
    name = "questions" if testset == "file" else testset
    assert line == (0, name, *expected, None)


@pytest.mark.parametrize("testset", list(REAL))
def test_the_real_sets_are_read_whole(testset: str) -> None:
    file = SHARED / "judge" / f"{testset}_test_set.jsonl"
    if not file.is_file():
        pytest.skip("needs the five published test sets, which are not part of the project")
    questions = read(file, testset)
    assert questions.height == questions["id"].n_unique() == REAL[testset]
    assert (questions["input"] != "").sum() == (208 if testset == "sinstruct" else 0)
    has_category = testset in ("vicuna", "wizardlm", "sinstruct")
    assert questions["category"].null_count() == (0 if has_category else REAL[testset])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["no questions", "testset.path"]),
        ('{"id": 1, "question": "a"}\n{"id": 2', ["line 2", "broken JSON"]),
        ('[{"id": 1, "question": "a"}, 7]', ["record 1", "not a JSON object"]),
        ("[7", ["broken JSON"]),
        ('{"id": 1, "text": "a"}', ["line 1", "'question'", "testset.columns"]),
        ('{"id": 1, "question": " "}', ["line 1", "blank"]),
        ('{"id": 1, "question": ["a", "b"]}', ["line 1", "list"]),
        ('{"id": 1, "question": "\\ud800"}', ["line 1", "surrogate"]),
        ('{"id": true, "question": "a"}', ["line 1", "'id'"]),
        ('{"id": 1, "question": "a", "input": {}}', ["line 1", "'input'"]),
        ('{"id": 1, "question": "a"}\n\n{"id": "1", "question": "b"}', ["line 3", "id 1"]),
    ],
)
def test_a_broken_test_set_costs_one_line(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [str(file), *words])


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
        ("max_length=100000", ["max_length=100000", "512"]),
    ],
)
def test_a_wrong_setting_costs_one_line(
    tiny: Path, testset: Path, tmp_path: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        run_generate(*options(tiny, testset, tmp_path / "run", override))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "run" / "answers.jsonl").exists()


# --- answers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(checkpoint: Path, testset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of the embedded checkpoint, by transformers in fp32."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    run_generate(*options(checkpoint, testset, folder, "prompt=chat"))
    return folder


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
    meta = json.loads((run_dir / "answers.meta.json").read_text())
    counts = meta["counts"]
    assert counts["dropped"] == {"prompt_too_long": 1}
    assert counts["questions"] == sum(counts["answered"].values()) + 1 == len(QUESTIONS)
    assert counts["answered"]["cut at the limit"] == len(cut)
    assert meta["settings"]["decoding"]["max_new_tokens"] == 12


def test_an_answer_is_what_a_plain_greedy_loop_writes(checkpoint: Path, run_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for line in lines_of(run_dir):
        if line["drop_reason"]:
            continue
        message = "\n\n".join(filter(None, [line["question"], line["input"]]))
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
        )
        written: list[int] = []
        while len(written) < 12 and tokenizer.eos_token_id not in written:
            with torch.no_grad():
                logits = model(torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
        text = tokenizer.decode(written, skip_special_tokens=True)
        assert line["answer"] == text.strip()


def test_vllm_writes_the_same_answers(
    checkpoint: Path, testset: Path, run_dir: Path, cli: Cli, tmp_path: Path
) -> None:
    more = ("prompt=chat", "engine=vllm_eager", "engine.dtype=float32")
    done = cli("generate", *options(checkpoint, testset, tmp_path, *more))
    assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path) == lines_of(run_dir)
    assert "max_length=128: filled by the prompt of 1 of 5 questions" in done.stderr


def test_the_judge_reads_them_and_counts_what_has_no_answer(
    tiny: Path,
    testset: Path,
    run_dir: Path,
    server: JudgeServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    run_generate(*options(tiny, testset, tmp_path, "generate.output=tiny.jsonl", "prompt=chat"))
    files = (run_dir / "answers.jsonl", tmp_path / "tiny.jsonl")
    assert [pair.is_answered for pair in read_pairs(*files)] == [True, True, False, True, True]
    run_judge(tmp_path, f"judge.first={files[0]}", f"judge.second={files[1]}", "judge.model=m")
    assert len(server.replied) == 8  # four pairs, in both orders
    verdicts = pl.read_parquet(tmp_path / "verdicts.parquet")
    assert verdicts.filter(verdict="unanswered")["id"].to_list() == ["3"]
    total = json.loads((tmp_path / "judge.json").read_text())["figures"][0]
    kinds = ("win", "tie", "loss", "unparsed", "failed", "unanswered")
    assert sum(total[kind] for kind in kinds) == total["questions"] == len(QUESTIONS)
    assert total["unanswered"] == 1


def test_a_null_answer_without_a_reason_is_a_broken_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": 1, "question": "a", "answer": null}')
    with pytest.raises(UserError, match="no field 'answer'"):
        read_pairs(file, file)


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


def test_what_decides_an_answer_names_it_and_nothing_is_written_twice(
    tiny: Path, testset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def folders() -> Iterator[Path]:
        return (tmp_path / "answers").iterdir()

    first = run_generate(*options(tiny, testset, tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("answers/*/*.parquet")}
    again = run_generate(*options(tiny, testset, tmp_path, "seed=5"))  # greedy draws nothing
    assert again == first
    assert "replaced" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    changes = ("generate.max_new_tokens=3", "prompt=vicuna", "generate.temperature=0.5")
    for number, change in enumerate(changes, start=2):
        run_generate(*options(tiny, testset, tmp_path, change))
        assert len(list(folders())) == number
        assert caplog.text.count("answers of other settings are replaced") == number - 1


# --- engines -----------------------------------------------------------------------------------


def test_an_answer_ends_before_its_first_stop_token_or_at_the_limit() -> None:
    assert until_stop([5, 6, 2, 7], 9, [2, 3]) == ([5, 6], True)
    assert until_stop([5, 6, 2, 7], 2, [2, 3]) == ([5, 6], False)
    assert until_stop([2], 9, [2]) == ([], True)
    assert Decoding(0, 1, 0, None).limit([1, 2, 3], 8) == 5
    assert Decoding(0, 1, 0, 4).limit([1, 2, 3], 8) == 4


def test_stop_tokens_are_all_that_the_checkpoint_names(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert read_stop_ids(tiny, tokenizer, trust_remote_code=False) == [tokenizer.eos_token_id]
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2, 999999]}')
    tokenizer.eos_token = "<repo_name>"
    found = read_stop_ids(tmp_path, tokenizer, trust_remote_code=False)
    assert found == sorted({0, 2, tokenizer.eos_token_id})


def test_batching_changes_no_greedy_answer(checkpoint: Path) -> None:
    prompts = [[504, 2967, 282], [5000], [1, 4093, 198, 1780, 314, 260], [28, 354]]
    answers = []
    for batch_tokens in (1, 1024):
        generator = build_generator(
            HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=batch_tokens),
            read_checkpoint(checkpoint),
            max_length=14,
            trust_remote_code=False,
            decoding=Decoding(0, 1, 0, None),
            stop_ids=[2],
        )
        answers.append(generator.generate(prompts, lambda _count: None, seed=0))
    assert answers[0] == answers[1]
    assert [len(answer.token_ids) for answer in answers[0] if not answer.is_whole]
