from pathlib import Path

import pytest

from tests.conftest import SHARED

RECORDED = ("vicuna_wrap_reviews_gpt4", "wizardlm_wrap_reviews_gpt4", "sinstruct_wrap_reviews_gpt4")


@pytest.fixture(scope="session")
def recorded() -> dict[str, Path]:
    """The paper's recorded reviews."""
    names = (*RECORDED, "vicuna_wrap_reviews_gpt3.5")
    files = {name: SHARED / "judge" / f"{name}.json" for name in names}
    if not all(file.is_file() for file in files.values()):
        pytest.skip("needs the paper's recorded reviews, which are not part of the project")
    return files
