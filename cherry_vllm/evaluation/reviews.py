"""Recorded reviews, in the format of the paper's own evaluation logs.

    {"Meta_Info": {"dataset_name": "vicuna"},
     "data": [{"text": ..., "Answer1": ..., "Answer2": ..., "review": ..., "review_reverse": ...}]}

``review`` saw Answer1 as Assistant 1, ``review_reverse`` saw it as Assistant 2. The recorded
``scores`` are not read: the judge's words count.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import AnswerPair, check_text, read_text
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.verdicts import Judgement

# Each of the paper's test sets has its own name for the question.
QUESTION_FIELDS = ("text", "prompt", "Instruction", "instruction", "conversations", "question")
FORMAT = "give a reviews file: an object with the list 'data'"


def read_reviews(files: Sequence[Path]) -> list[Judgement]:
    """The reviews of all files, in the same form as an endpoint's replies.

    A file's test set is its ``dataset_name``, or else the file's name. A record may hold ``id``,
    ``input`` and ``category``; without an ``id``, its position is its id.

    Raises:
        UserError: a file is not readable or has another format, or two files have one test set.
    """
    reviews: list[Judgement] = []
    seen: dict[str, Path] = {}
    for file in files:
        testset, records = _read_file(file)
        if testset in seen:
            raise UserError(
                f"{file}: same test set ({testset}) as {seen[testset]}; give one of the two"
            )
        seen[testset] = file
        for index, record in enumerate(records):
            try:
                reviews.append(_decode(record, testset, index))
            except ValueError as error:
                raise UserError(f"{file}: record {index}: {error}; fix the record") from None
    if not reviews:
        raise UserError("judge.reviews: no reviews; " + FORMAT)
    return reviews


def _read_file(file: Path) -> tuple[str, list[Any]]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: broken JSON ({error}); {FORMAT}") from None
    records = content.get("data") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise UserError(f"{file}: {FORMAT}")
    about = content.get("Meta_Info")
    name = about.get("dataset_name") if isinstance(about, dict) else None
    return name if isinstance(name, str) else file.stem, records


def _decode(record: Any, testset: str, index: int) -> Judgement:
    """The judgement in a record; raises ValueError with the reason if it is not a review."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    question = next((name for name in QUESTION_FIELDS if name in record), "text")
    needed = (question, "Answer1", "Answer2", "review", "review_reverse")
    texts = {name: check_text(record.get(name), name) for name in needed}
    category = record.get("category")
    pair = AnswerPair(
        testset=testset,
        id=str(record.get("id", index)),
        category=None if category is None else check_text(category, "category"),
        question=texts[question],
        input=check_text(record.get("input", ""), "input"),
        first=texts["Answer1"],
        second=texts["Answer2"],
    )
    return Judgement(pair, Reply(texts["review"]), Reply(texts["review_reverse"]))
