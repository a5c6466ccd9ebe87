"""What the tests of the command line share."""

from collections.abc import Callable

import pytest

from cherry_vllm.cli import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that is refused, and returns the one line that says why."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        shown = capsys.readouterr()
        (line,) = shown.err.splitlines()
        assert line.startswith("cherry-vllm: ")
        assert shown.out.strip() == ""
        return line.removeprefix("cherry-vllm: ")

    return run
