"""Answer files to pairs of answers: two models on the same questions."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cherry_vllm.errors import UserError
from cherry_vllm.store.hashes import fingerprint

MAX_IDS_SHOWN = 3
ONLY_TESTSET = "test set"  # the name of a test set that has none
REQUIRED = ("question", "answer")
NO_ANSWER = "drop_reason"  # says why a line's answer is null
OPTIONAL = ("input", "category", "testset")


class Answer(NamedTuple):
    """One line of an answer file; ``answer`` is None if the model could not be asked."""

    testset: str
    id: str
    category: str | None
    question: str
    input: str
    answer: str | None


class AnswerPair(NamedTuple):
    """The two answers to one question; ``first`` is the side that wins or loses."""

    testset: str
    id: str
    category: str | None
    question: str
    input: str
    first: str | None
    second: str | None

    @property
    def is_answered(self) -> bool:
        """Whether there are two answers to compare."""
        return self.first is not None and self.second is not None

    @property
    def key(self) -> str:
        """Names the question and these two answers, whoever judges them and whatever its id."""
        context = {"input": self.input} if self.input else {}
        answers = [self.first, self.second]
        return fingerprint({"question": self.question, **context, "answers": answers})


def read_pairs(first: Path, second: Path) -> list[AnswerPair]:
    """Pairs the answers of two JSON Lines files by id, in the order of the first file.

    A line holds ``id``, ``question`` and ``answer``, and may hold ``input``, ``category`` and
    ``testset``; ids are unique within a test set. A null answer needs a ``drop_reason``.

    Raises:
        UserError: a file is not readable, a line is broken, an id is only in one file, or the two
            files have different questions under one id.
    """
    left, right = _read_answers(first), _read_answers(second)
    _check_same_ids(first, left, second, right)
    _check_same_ids(second, right, first, left)
    pairs = []
    for key, answer in left.items():
        other = right[key]
        if (answer.question, answer.input) != (other.question, other.input):
            raise UserError(
                f"{second}: id {answer.id}: the question differs from the one in {first}; "
                "let both models answer the same test set"
            )
        pairs.append(AnswerPair(*answer[:-1], first=answer.answer, second=other.answer))
    return pairs


def _check_same_ids(file: Path, answers: dict[Any, Answer], other: Path, others: Any) -> None:
    missing = [answer.id for key, answer in answers.items() if key not in others]
    if missing:
        shown = ", ".join(missing[:MAX_IDS_SHOWN]) + (", ..." if missing[MAX_IDS_SHOWN:] else "")
        raise UserError(
            f"{other}: no answer for {len(missing)} of the {len(answers)} ids of {file} ({shown}); "
            "let both models answer the whole test set"
        )


def _read_answers(file: Path) -> dict[tuple[str, str], Answer]:
    answers: dict[tuple[str, str], Answer] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            answer = _decode(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number}: {error}; fix the line") from None
        key = (answer.testset, answer.id)
        if key in answers:
            raise UserError(f"{file}: line {number}: duplicate id {answer.id}: ids must be unique")
        answers[key] = answer
    if not answers:
        raise UserError(f"{file}: no answers; check judge.first and judge.second")
    return answers


def _decode(line: str) -> Answer:
    """The answer on a line; raises ValueError with the reason if there is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    name = fields.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError("field 'id' must be text or a whole number")
    is_dropped = fields.get("answer") is None and isinstance(fields.get(NO_ANSWER), str)
    required = REQUIRED[:1] if is_dropped else REQUIRED
    texts = {field: check_text(fields.get(field), field) for field in required}
    texts |= {
        field: check_text(fields[field], field)
        for field in OPTIONAL
        if fields.get(field) is not None
    }
    return Answer(
        testset=texts.get("testset", ONLY_TESTSET),
        id=str(name),
        category=texts.get("category"),
        question=texts["question"],
        input=texts.get("input", ""),
        answer=texts.get("answer"),
    )


def check_text(value: Any, field: str) -> str:
    """The value itself; raises ValueError with the reason if it is not valid text."""
    if value is None:
        raise ValueError(f"no field '{field}'")
    if not isinstance(value, str):
        raise ValueError(f"field '{field}' is {type(value).__name__}, not text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"field '{field}' contains a lone surrogate, which is not valid text")
    return value


def read_text(file: Path) -> str:
    """The text of a UTF-8 file; raises a UserError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error.reason}); convert it") from None
