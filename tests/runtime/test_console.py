"""Libraries print errors alone, unless the user asks for more."""

import os
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from cherry_vllm.runtime.console import QUIET, is_verbose, quiet_libraries, set_verbose


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with patch.dict(os.environ), warnings.catch_warnings():
        for name in QUIET:
            os.environ.pop(name, None)
        yield


def test_libraries_are_quiet_here_and_in_the_processes_that_are_started() -> None:
    set_verbose(is_verbose=False)
    assert not is_verbose()
    assert {name: os.environ[name] for name in QUIET} == QUIET
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("of a library's future", FutureWarning, stacklevel=1)
    assert caught == []


def test_what_the_user_has_set_stays() -> None:
    os.environ |= {"VLLM_LOGGING_LEVEL": "DEBUG", "PYTHONWARNINGS": "error"}
    warnings.simplefilter("error")
    quiet_libraries()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    with pytest.raises(FutureWarning):
        warnings.warn("of a library's future", FutureWarning, stacklevel=1)


def test_a_verbose_run_changes_nothing() -> None:
    set_verbose(is_verbose=True)
    assert is_verbose()
    assert not QUIET.keys() & os.environ.keys()
