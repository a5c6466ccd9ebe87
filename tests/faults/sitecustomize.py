"""On the path of a test's processes alone: an engine that fails on certain rows.

FAULT says how, on rows whose answer begins with the token FAULT_TOKEN:

kill  its process dies
row   it raises if the row is alone, and dies otherwise
load  the process dies as the engine is loaded, whatever the rows
none  nothing
"""

import os
import signal
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from cherry_vllm import engines
from cherry_vllm.engines import Span

original = engines.build_engine
token, fault = int(os.environ["FAULT_TOKEN"]), os.environ["FAULT"]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def fail(spans: Sequence[Span]) -> None:
    if fault == "row" and len(spans) == 2:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if fault != "none":
        die()


@wraps(original)
def build_engine(*arguments: Any, **settings: Any) -> Any:
    if fault == "load":
        die()
    engine: Any = original(*arguments, **settings)
    logprobs = engine.logprobs

    def fragile(spans: Sequence[Span], on_scored: Callable[[int], None]) -> Any:
        if any(span.token_ids[span.start] == token for span in spans):
            fail(spans)
        return logprobs(spans, on_scored)

    engine.logprobs = fragile
    return engine


engines.build_engine = build_engine
