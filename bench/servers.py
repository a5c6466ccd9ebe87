"""Servers beside an engine in the process: speed, agreement, and bytes on the wire.

    python -m bench.servers --data FILE [--rows 60] [--repeats 3] [--model FOLDER]
                            [--dtype bfloat16] [--probe FILE]

The same spans go through stock vLLM in a process of its own, through one server with all cores,
and through two servers that share the cores out. Their passes alternate, so that a noisy
machine disturbs all of them equally; medians are compared. Nothing is compiled. ``--probe`` writes
the log-probs by which servers are told apart; if the file exists, it is compared with first.
"""

import argparse
import base64
import io
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.demo import DATA, MODEL
from bench.server import run_server
from bench.throughput import MAX_LENGTH, build_spans
from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.served import find_served
from cherry_vllm.engines.settings import ServerSettings
from cherry_vllm.runtime.processes import Child, Wire

Floats = list[Any]
NUM_COUNTED = 12  # spans of which bytes are counted


def score_here(wire: Wire, model: Path, dtype: str, spans: list[Span]) -> None:
    """Runs in a process of its own: scores all spans for each message."""
    words = ("engine=vllm", "engine.enforce_eager=true", f"engine.dtype={dtype}")
    engine = build_engine(
        engine_settings(compose(*words).engine),
        read_checkpoint(model),
        max_length=MAX_LENGTH,
        trust_remote_code=False,
    )
    wire.send("loaded")
    while wire.recv():
        wire.send(engine.logprobs(spans, lambda _count: None))


def ask_servers(model: Path, urls: Sequence[str], spans: list[Span]) -> Callable[[], Floats]:
    words = ("engine=vllm_server", "engine.model=m", f"engine.base_url=[{','.join(urls)}]")
    settings = engine_settings(compose(*words).engine)
    assert isinstance(settings, ServerSettings)
    limits: Any = {"trust_remote_code": False}
    served = find_served(str(model), settings, num_tokens=MAX_LENGTH + 1, **limits)
    engine = build_engine(settings, served, max_length=MAX_LENGTH, **limits)
    return lambda: engine.logprobs(spans, lambda _count: None)


def compare(left: Floats, right: Floats) -> str:
    """How much log-probs differ, and IFD of rows whose spans are neighbours."""
    differences = np.concatenate(left) - np.concatenate(right)
    ifd = [
        np.array([a.mean() / b.mean() for a, b in zip(it[::2], it[1::2], strict=True)])
        for it in (left, right)
    ]
    apart = np.abs(ifd[0] - ifd[1])
    return (
        f"tokens: rms {np.sqrt((differences**2).mean()):.1e}, max {np.abs(differences).max():.1e};"
        f" IFD: median {np.median(apart):.1e}, max {apart.max():.1e}"
    )


def post(url: str, body: dict[str, Any]) -> int:
    """The number of bytes in a reply."""
    request = urllib.request.Request(url, json.dumps(body).encode())  # noqa: S310
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        return len(reply.read())


def count_bytes(url: str, spans: list[Span]) -> None:
    """Prints bytes per token of a span, received and sent, of each way."""
    received, chosen_received, sent, chosen_sent, tokens = 0, 0, 0, 0, 0
    for span in spans:
        ids = span.token_ids
        body = {"model": "m", "prompt": ids, "max_tokens": 1, "temperature": 0}
        received += post(f"{url}/v1/completions", body | {"prompt_logprobs": 0})
        sent += len(json.dumps(body))
        content = io.BytesIO()
        np.save(content, np.zeros((len(ids) - span.start, 1), np.float32))
        coded = base64.b64encode(content.getvalue())
        chosen_received += len(json.dumps(ids)) + len(coded)
        chosen_sent += len(json.dumps(ids)) + len(json.dumps([[it] for it in ids[span.start :]]))
        tokens += len(ids)
    print(f"bytes per token, prompt: {received / tokens:.1f} received, {sent / tokens:.1f} sent")
    print(
        f"bytes per token, chosen, by its format: {chosen_received / tokens:.1f} received, "
        f"{chosen_sent / tokens:.1f} sent"
    )


def measure(ways: dict[str, Callable[[], Floats]], spans: list[Span], repeats: int) -> None:
    """Prints the speed of each way, and how much its log-probs differ from the first one's."""
    found: dict[str, Floats] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, run in ways.items():
            started = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - started)
    num_tokens, first = sum(len(span.token_ids) for span in spans), next(iter(ways))
    base = statistics.median(seconds[first][1:])
    for name, all_seconds in seconds.items():
        timed = all_seconds[1:]  # the first pass warms up
        median = statistics.median(timed)
        print(
            f"{name:<24}{num_tokens / median:>8.0f} tokens/s {base / median:>6.2f}"
            f"   {min(timed):.1f} to {max(timed):.1f} s   {compare(found[first], found[name])}"
        )


def compare_probe(file: Path, model: Path, url: str) -> None:
    words = ("engine=vllm_server", "engine.model=m", f"engine.base_url={url}")
    settings: Any = engine_settings(compose(*words).engine)
    limits: Any = {"num_tokens": MAX_LENGTH + 1, "trust_remote_code": False}
    logprobs = np.array(find_served(str(model), settings, **limits).logprobs)
    if file.exists():
        apart = np.abs(logprobs - np.array(json.loads(file.read_text()))).mean()
        print(f"probe of {len(logprobs)} tokens: {apart:.4f} nats from {file}")
    else:
        file.write_text(json.dumps(logprobs.tolist()))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--probe", type=Path)
    return parser.parse_args()


def start_servers(stack: ExitStack, model: Path, dtype: str, logs: Path) -> list[str]:
    """The addresses of three servers: one with all cores, and two that share them out."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return [
        stack.enter_context(
            run_server(
                model,
                logs / f"{number}.txt",
                name="m",
                max_length=MAX_LENGTH + 1,
                cores=own,
                arguments=["--dtype", dtype, "--max-num-batched-tokens", "2048"],
            )
        ).address
        for number, own in enumerate((cores, cores[:half], cores[half:]))
    ]


def start_engine(
    stack: ExitStack, model: Path, dtype: str, spans: list[Span]
) -> Callable[[], Floats]:
    """Loads stock vLLM in a process of its own; returns what makes it score all spans."""
    from bench.servers import score_here  # by a name that the child can import

    child = Child(score_here, model, dtype, spans)
    stack.callback(child.close)
    child.receive()

    def score() -> Floats:
        child.send("score")
        return list(child.receive())

    return score


def main() -> None:
    arguments = read_arguments()
    model, dtype = arguments.model, arguments.dtype
    spans = build_spans(arguments.data, model, arguments.rows)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = start_servers(stack, model, dtype, Path(folder))
        if arguments.probe:
            compare_probe(arguments.probe, model, urls[0])
        count_bytes(urls[0], spans[:NUM_COUNTED])
        ways: dict[str, Callable[[], Floats]] = {
            "vllm": start_engine(stack, model, dtype, spans),
            "one server": ask_servers(model, urls[:1], spans),
            "two, of half the cores": ask_servers(model, urls[1:], spans),
        }
        print(f"{len(spans) // 2} rows, {dtype}", flush=True)
        measure(ways, spans, arguments.repeats)


if __name__ == "__main__":
    main()
