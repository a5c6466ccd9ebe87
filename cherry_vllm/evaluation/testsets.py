"""Test sets to questions: each published set has its own field names."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import check_text, read_text
from cherry_vllm.schema import REASON, SCHEMA_VERSION, Schema
from cherry_vllm.sources.fields import CONVENTIONAL_INPUT, find_field
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.run_folder import Folder
from cherry_vllm.store.shards import Shards

# One line per question.
QUESTIONS: Schema = {
    "row": pl.Int64,  # 0-based position in the test set
    "testset": pl.String,
    "id": pl.String,
    "category": pl.String,  # null where the set has none
    "question": pl.String,
    "input": pl.String,  # "" where there is none
    "drop_reason": REASON,
}


class QuestionColumns(NamedTuple):
    """The names of the four fields in a record; None if it lacks the field.

    A dotted name goes through objects and lists, as in "instances.0.input".
    """

    id: str | None
    question: str
    input: str | None
    category: str | None


def read(
    run_dir: Path, file: Path, *, name: str | None, columns: QuestionColumns, shard_questions: int
) -> Shards:
    """A test set to shards of :data:`QUESTIONS`. See :func:`read_questions` for the arguments."""
    questions = read_questions(file, name=name, columns=columns)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "files": [file_sha256(file)],
        "testset": questions["testset"][0],
        "columns": columns._asdict(),
        "shard_questions": shard_questions,
    }
    shards = Shards(run_dir / Folder.QUESTIONS, settings)
    with shards.changing():
        if not shards.is_complete():
            parts = list(questions.iter_slices(shard_questions))
            for index, part in enumerate(parts):
                shards.write(index, part)
            shards.close(len(parts), num_rows=questions.height, files=[str(file)])
    return shards


def read_questions(file: Path, *, name: str | None, columns: QuestionColumns) -> pl.DataFrame:
    """The questions of a file of JSON Lines, or of a JSON array, as a frame of QUESTIONS.

    ``name`` names the test set; None takes the file's name. Without a column for it, a question's
    id is its position.

    Raises:
        UserError: the file is not readable or has no questions, or a record is broken, has no
            question or a duplicate id.
    """
    rows: list[tuple[int, str, str, str | None, str, str, None]] = []
    seen: set[str] = set()
    for place, record in _records(file):
        try:
            line = _decode(record, len(rows), columns)
        except ValueError as error:
            raise UserError(f"{file}: {place}: {error}; fix it, or set testset.columns") from None
        if line[0] in seen:
            raise UserError(f"{file}: {place}: duplicate id {line[0]}: ids must be unique")
        seen.add(line[0])
        rows.append((len(rows), name or file.stem, *line, None))
    if not rows:
        raise UserError(f"{file}: no questions; check testset.path")
    if columns.input not in (None, CONVENTIONAL_INPUT) and not any(line[5] for line in rows):
        raise UserError(
            f"testset.columns.input={columns.input}: no question has anything there; check the "
            "name, or give null if there is none"
        )
    return pl.DataFrame(rows, schema=QUESTIONS, orient="row")


def _records(file: Path) -> list[tuple[str, Any]]:
    """Each record with its place in the file."""
    text = read_text(file)
    try:
        if text.lstrip().startswith("["):
            return [(f"record {index}", record) for index, record in enumerate(json.loads(text))]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: broken JSON ({error}); fix the file") from None
    return [
        (f"line {number}", line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _decode(
    record: Any, position: int, columns: QuestionColumns
) -> tuple[str, str | None, str, str]:
    """Id, category, question and input; raises ValueError if there is no question."""
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"broken JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    question = check_text(find_field(record, columns.question), columns.question)
    if not question.strip():
        raise ValueError(f"field '{columns.question}' is blank")
    name = position if columns.id is None else find_field(record, columns.id)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"field '{columns.id}' must be text or a whole number")
    extra, category = (
        None if found is None else check_text(found, str(column))
        for column in (columns.input, columns.category)
        for found in [column and find_field(record, column)]
    )
    return str(name), category, question, extra or ""
