"""The pool and the held-out rows share no question, whatever format they come in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bench.comparison.entries import Settings
from bench.comparison.rows import SHARED, RowReader
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
from tests import fakes


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> SpanBuilder:
    model = read_checkpoint(fakes.write_checkpoint(tmp_path_factory.mktemp("base") / "base"))
    prompt = prompt_of(compose("prompt=vicuna"))
    return open_span_builder(model, prompt=prompt, max_length=96, trust_remote_code=False)


def write(path: Path, records: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"data.path={path}"


def asking(*questions: str) -> list[dict[str, str]]:
    return [{"instruction": text, "input": "", "output": "An answer."} for text in questions]


def test_held_out_rows_share_no_question_with_the_pool(
    builder: SpanBuilder, tmp_path: Path
) -> None:
    rows = [*asking("a", "b"), {"instruction": "x", "output": " "}, *asking(" A ", "c", "b", "d")]
    long = {"instruction": "word " * 200, "output": "too long"}
    reader = RowReader(compose(write(tmp_path / "a.jsonl", [*rows, long, *asking("e")])), builder)
    pool = reader.take("pool", 2, "--rows")
    held_out = reader.take("held-out", 3, "--held-out", pool)
    assert [json.loads(record)["instruction"] for record in held_out.records] == ["c", "d", "e"]
    assert held_out.passed == {"empty_answer": 1, SHARED: 2, "prompt_too_long": 1}
    assert len(held_out.num_answer_tokens) == len(held_out.spans) == 3
    with pytest.raises(UserError, match=r"--held-out 1: .*a\.jsonl has only more: 0 rows; lower"):
        reader.take("more", 1, "--held-out", pool)


def test_conversations_count_as_one_question_up_to_their_last_answer(
    builder: SpanBuilder, tmp_path: Path
) -> None:
    def talk(*texts: str) -> dict[str, Any]:
        roles = ("user", "assistant") * len(texts)
        said = zip(roles, texts, strict=False)
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    talks = [talk("Hi", "Yes?", "One", "1"), talk("Hi", "Yes?", "Two", "2"), talk("Hi", "Yes?")]
    reader = RowReader(compose(write(tmp_path / "a.jsonl", [*talks, talks[0]])), builder)
    pool = reader.take("pool", 1, "--rows")
    held_out = reader.take("held-out", 2, "--held-out", pool)
    assert [json.loads(record) for record in held_out.records] == talks[1:]
    assert held_out.passed == {}
    assert all(count > 0 for count in held_out.num_answer_tokens)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.json"])
def test_rows_of_any_format_are_the_same_once_they_are_json_lines(
    builder: SpanBuilder, tmp_path: Path, name: str
) -> None:
    said = [
        [{"from": "human", "value": "Hi, you"}, {"from": "gpt", "value": f"Yes, {number}."}]
        for number in range(3)
    ]
    file = tmp_path / name
    if file.suffix == ".json":
        file.write_text(json.dumps({"data": [{"conversations": one, "id": 7} for one in said]}))
    else:
        frame = pl.DataFrame({"prompt": ["Hi, you"] * 3, "completion": ["1", '"2"', "3, 4"]})
        write = frame.write_csv if file.suffix == ".csv" else frame.write_parquet
        write(file)
    field = ["data.field=data"] if file.suffix == ".json" else []
    settings = Settings([f"data.path={file}", *field], tmp_path / "run")
    pool = RowReader(settings.compose(), builder).take("pool", 3, "--rows")
    lines = tmp_path / "pool.jsonl"
    lines.write_text("".join(f"{record}\n" for record in pool.records))
    again = RowReader(settings.of_pool(lines), builder).take("pool", 3, "--rows")
    assert again == pool
    assert len(pool.num_answer_tokens) == 3
