"""On the path of a test's processes alone: an engine that meets its fate on certain rows.

FAULT is "load", and an engine's process dies as it starts; or "kill", and it dies on a row whose
answer begins with the token FAULT_TOKEN; or "row", where it raises instead if that row is alone.
"""

import os
import signal
from functools import wraps

from cherry_vllm import engines

original = engines.build_engine
token, fault = int(os.environ["FAULT_TOKEN"]), os.environ["FAULT"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@wraps(original)
def build_engine(*arguments, **settings):
    if fault == "load":
        die()
    engine = original(*arguments, **settings)
    logprobs = engine.logprobs

    def fragile(spans, on_scored):
        if any(span.token_ids[span.start] == token for span in spans):
            if fault == "row" and len(spans) == 2:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            die()
        return logprobs(spans, on_scored)

    engine.logprobs = fragile
    return engine


engines.build_engine = build_engine
