from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.engines.models import make_checkpoint


@pytest.fixture(scope="session")
def in_process() -> Iterator[Callable[..., Any]]:
    """Runs a function of ``tests/engines/process.py`` in the one process that has vLLM loaded."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def run(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
            return pool.submit(function, *arguments, **keywords).result()

        yield run


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small random checkpoint of an architecture; the same one each time."""
    return cache(lambda name: make_checkpoint(name, tmp_path_factory.mktemp(name) / "model"))
