"""The documentation is as true as what it is generated from, and its links lead somewhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cherry_vllm.cli.keys import known_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("usage", ROOT / "docs" / "generate_usage.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_keys_are_fresh() -> None:
    written = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    assert generator().render() == written, "stale: run `make docs`"


def test_every_key_is_explained() -> None:
    rows = re.findall(r"^\| `[\w.]+` \|.*\|([^|]*)\|$", generator().render(), flags=re.MULTILINE)
    assert len(rows) > 80
    assert all(meaning.strip() for meaning in rows)


def test_every_key_has_a_line() -> None:
    chosen_by_group = {"engine.name", "executor.name", "sample.strategy"}
    page = generator().render()
    missing = {key for key in known_keys() if f"| `{key}` |" not in page}
    of_train = {key for key in missing if key.startswith("pre_experience.")}  # as train.KEY
    assert missing - of_train == chosen_by_group


def anchors(file: Path) -> set[str]:
    """What a repository browser calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_each_promise_names_tests_that_exist() -> None:
    promises = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!promise|event|---).*$", promises, flags=re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, function in named:
            tests = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function}(" in tests, f"{file}::{function}"
