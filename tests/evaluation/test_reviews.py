"""Recorded reviews of another format are refused."""

from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.reviews import read_reviews
from tests.judging import REVIEWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["broken JSON"]),
        ("[]", ["'data'"]),
        ('{"data": []}', ["no reviews"]),
        ('{"data": [{"text": "q"}]}', ["record 0", "Answer1"]),
        ('{"data": [3]}', ["record 0", "object"]),
    ],
)
def test_reviews_of_another_format_are_refused(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read_reviews([file])
    assert all(word in str(error.value) for word in words)
    with pytest.raises(UserError, match="same test set"):
        read_reviews([REVIEWS, REVIEWS])
