"""What it costs to score conversations: one sequence each, against one sequence per turn.

    python -m bench.conversations --data FILE [--rows 40] [--max-length 1024] [--repeats 3]
                                  [--setup engine=vllm_fused] [--model FOLDER]

Each way has an engine process; their passes alternate, and the medians are compared. Tokens
are those of all sequences of both passes, whether or not the prefix cache saves some of them.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from tqdm import tqdm

from bench.demo import MODEL
from bench.throughput import CORES, EngineProcess
from bench.waiting import time_pass
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.spans import AnswerSpans, open_span_builder
from cherry_vllm.sources import Columns, find_files, read_rows


def build_pairs(data: str, model: Path, num_rows: int, max_length: int) -> list[AnswerSpans]:
    """The spans of the first conversations with several turns, under the chat template."""
    frames = read_rows(
        find_files([data]),
        columns=Columns(),
        refusals=[],
        batch_rows=10_000,
    )
    several = (pl.col("messages").list.len() > 2) & pl.col("drop_reason").is_null()
    rows = next(frames).filter(several).head(num_rows)
    prompt = prompt_of(compose("prompt=chat"))
    builder = open_span_builder(
        read_checkpoint(model), prompt=prompt, max_length=max_length, trust_remote_code=False
    )
    built = builder.build(open_conversations(rows))
    return [pair for pair in built if isinstance(pair, AnswerSpans)]


def by_turn(span: Span) -> list[Span]:
    """A sequence for each range of a span, with all that precedes it."""
    return [Span(span.token_ids[:stop], ((start, stop),)) for start, stop in span.ranges]


def ways_of(pairs: Sequence[AnswerSpans]) -> dict[str, list[Span]]:
    direct = [span for pair in pairs for span in pair.direct]
    whole = [span for pair in pairs for span in pair.conditioned]
    return {
        "a sequence per conversation": whole + direct,
        "a sequence per turn": [turn for span in whole for turn in by_turn(span)] + direct,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--setup", default="engine=vllm_fused")
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    pairs = build_pairs(arguments.data, arguments.model, arguments.rows, arguments.max_length)
    ways = ways_of(pairs)
    engines = {}
    for way, spans in tqdm(ways.items(), desc="loading"):
        engines[way] = EngineProcess(
            arguments.setup, arguments.model, spans, CORES, max_length=arguments.max_length
        )
        engines[way].receive()
        time_pass(engines[way])  # a warm-up, not counted
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(arguments.repeats), desc="passes"):
        for way, engine in engines.items():
            seconds[way].append(time_pass(engine))
    answers = sum(span.num_answer_tokens for pair in pairs for span in pair.conditioned)
    turns = sum(len(span.ranges) for pair in pairs for span in pair.conditioned)
    print(f"{len(pairs)} conversations, {turns} turns, {answers} answer tokens; {arguments.setup}")
    for way, spans in ways.items():
        tokens = sum(len(span.token_ids) for span in spans)
        median = statistics.median(seconds[way])
        print(
            f"{way:<30}{tokens:>9} tokens {median:>8.1f} s {len(pairs) / median:>8.2f} rows/s   "
            f"({min(seconds[way]):.1f} to {max(seconds[way]):.1f} s)"
        )


if __name__ == "__main__":
    main()
