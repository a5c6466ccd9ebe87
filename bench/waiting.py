"""How the threads of scoring should wait for each other: by spinning or asleep.

    python -m bench.waiting [--rows 60] [--repeats 3] [--setup engine=vllm_fused] [--data FILE]
                            [--model FOLDER]

Each way of waiting has an engine process of its own. Their passes alternate, first alone on
the machine and then beside one process that keeps a core busy. The medians are compared.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from bench.demo import DATA, MODEL
from bench.throughput import CORES, EngineProcess, build_spans

WAYS = {
    "as libgomp does by itself": {},
    "a short spin": {"GOMP_SPINCOUNT": "10000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--setup", default="engine=vllm_fused")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", default=str(DATA))
    arguments = parser.parse_args()
    spans = build_spans(arguments.data, arguments.model, arguments.rows)
    engines = {}
    for way, environment in tqdm(WAYS.items(), desc="loading"):
        engines[way] = EngineProcess(
            arguments.setup, arguments.model, spans, CORES, environment=environment
        )
        engines[way].receive()
    for engine in engines.values():
        time_pass(engine)  # a warm-up, not counted
    alone = take_turns(engines, arguments.repeats)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        shared = take_turns(engines, arguments.repeats)
    finally:
        busy.kill()
    print(f"{len(CORES)} cores, {arguments.rows} rows, {arguments.setup}; seconds, median (range)")
    for way in WAYS:
        print(f"{way:<28} alone {tell(alone[way])}   beside a busy core {tell(shared[way])}")


def take_turns(engines: dict[str, EngineProcess], repeats: int) -> dict[str, list[float]]:
    """The seconds of each engine's passes."""
    seconds: dict[str, list[float]] = {way: [] for way in engines}
    for _ in tqdm(range(repeats), desc="passes"):
        for way, engine in engines.items():
            seconds[way].append(time_pass(engine))
    return seconds


def time_pass(engine: EngineProcess) -> float:
    started = time.perf_counter()
    engine.send()
    engine.receive()
    return time.perf_counter() - started


def tell(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):6.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    main()
