"""On the path of a test's processes alone: an engine that fails on certain rows.

FAULT says how, on rows whose answer begins with the token FAULT_TOKEN:

kill  its process dies
row   it raises if the row is alone, and dies otherwise
busy  it computes for six seconds without a sign of life
hang  it does nothing for a minute
type  it raises what every row would meet
load  the process dies as the engine is loaded, whatever the rows
none  nothing
"""

import os
import signal
import time
from functools import wraps

from cherry_vllm import engines

original = engines.build_engine
token, fault = int(os.environ["FAULT_TOKEN"]), os.environ["FAULT"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail(spans):
    if fault == "busy":
        end = time.monotonic() + 6
        while time.monotonic() < end:
            pass
    elif fault == "hang":
        time.sleep(60)
    elif fault == "type":
        raise TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")
    elif fault == "row" and len(spans) == 2:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif fault != "none":
        die()


@wraps(original)
def build_engine(*arguments, **settings):
    if fault == "load":
        die()
    engine = original(*arguments, **settings)
    logprobs = engine.logprobs

    def fragile(spans, on_scored):
        if any(span.token_ids[span.start] == token for span in spans):
            fail(spans)
        return logprobs(spans, on_scored)

    engine.logprobs = fragile
    return engine


engines.build_engine = build_engine
