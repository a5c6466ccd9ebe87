"""``make help`` lists every target."""

import re
import subprocess

import pytest

from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_target_says_what_it_is_for() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## \w", MAKEFILE, re.MULTILINE), target


@pytest.mark.process
def test_make_help_shows_each_target_on_a_line() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = re.findall(r"^  make (\S+) +\w.*$", done.stdout, re.MULTILINE)
    assert {"help", "demo", "test-fast", "test", "test-exhaustive", "lint"} <= set(shown)
    assert len(shown) == len(re.findall(r"^[a-z-]+:.*## ", MAKEFILE, re.MULTILINE))
