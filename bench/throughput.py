"""Rows and tokens per second of each engine, on the same rows and cores, in one run.

    python -m bench.throughput [--workload average|longest|wide] [--rows 500] [--repeats 3]
                               [--dtype bfloat16|float32] [--data FILE] [--model FOLDER]
                               [--setup NAME ...]

A set-up is one of ``SETUPS``, overrides of the configuration separated by commas, or ``plain
transformers``: padded batches of 8 rows of similar length, for which the model makes all logits.
With ``executor.num_workers=2`` two engines split the rows and the cores; their memory is added up.

Each engine runs in its own process, whose peak memory is measured. First all engines are loaded and
warmed up with one pass. Then their passes alternate, so that a noisy machine disturbs all of
them equally, and the medians are compared. Workloads: ``average`` takes the first rows of the data,
``longest`` those with the longest answers. ``wide`` takes synthetic rows with questions of 300
tokens and answers of 60, and a random model with SmolLM2-135M's layers and 151,936 tokens.

The ceiling is the speed of a large matrix product of that type on this machine, measured after
every pass, of which the median counts. It is converted to tokens per second as if only the
operations that IFD needs were done: every token of both passes through the layers, only answer rows
through the LM head, and causal attention.

With few rows, batches sorted by length are padded more, which flatters the others against hf.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from bench.demo import DATA, MODEL
from cherry_vllm.config import Config, compose, engine_settings, prompt_of
from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.spans import AnswerSpans, open_span_builder
from cherry_vllm.runtime.memory import peak_bytes
from cherry_vllm.sources import Columns, find_files, read_rows
from cherry_vllm.workers.local import split_cores

MAX_LENGTH, BF16 = 512, "bfloat16"
CORES = sorted(os.sched_getaffinity(0))
ONE_A_CORE = (f"executor.num_workers={len(CORES)}", "engine.cpu_kv_cache_gib=0.2")
SETUPS = {
    "hf, one row at a time": ("engine=hf", "engine.batch_tokens=1"),
    "hf, batched by length": ("engine=hf",),
    "hf, larger batches": ("engine=hf", "engine.batch_tokens=4096"),
    "vllm, eager": ("engine=vllm", "engine.enforce_eager=true"),
    "vllm": ("engine=vllm",),
    "vllm_fused, eager": ("engine=vllm_fused_eager",),
    "vllm_fused, no prefix cache": ("engine=vllm_fused", "engine.enable_prefix_caching=false"),
    "vllm_fused": ("engine=vllm_fused",),
    "vllm_fused, one a core": ("engine=vllm_fused", *ONE_A_CORE),
}
PLAIN, PLAIN_ROWS = "plain transformers", 8
DEFAULT_SETUPS = ("hf, batched by length", "vllm", "vllm_fused")


def build_spans(data: str, model: Path, num_rows: int, *, longest: bool = False) -> list[Span]:
    """Both spans of each row that can be scored, as the score stage builds them."""
    frames = read_rows(
        find_files([data]),
        columns=Columns("instruction", "input", "output"),
        refusals=[],
        batch_rows=10_000 if longest else num_rows,
    )
    rows = next(frames).filter(pl.col("drop_reason").is_null())
    if longest:
        answer = pl.col("messages").list.last().struct.field("content")
        rows = rows.sort(answer.str.len_chars(), descending=True)
    builder = open_span_builder(
        read_checkpoint(model),
        prompt=prompt_of(compose()),
        max_length=MAX_LENGTH,
        trust_remote_code=False,
    )
    built = builder.build(open_conversations(rows.head(num_rows)))
    pairs = [pair for pair in built if isinstance(pair, AnswerSpans)]
    return [span for pair in pairs for span in (*pair.conditioned, *pair.direct)]


def make_up_spans(num_rows: int, vocab_size: int) -> list[Span]:
    """Spans of random tokens, with questions five times as long as answers."""
    generator = np.random.default_rng(0)
    spans = []
    for _ in range(num_rows):
        question, marker, answer = (
            generator.integers(10, vocab_size, count).tolist() for count in (300, 5, 60)
        )
        spans += [Span.from_start(question + answer, 300), Span.from_start(marker + answer, 5)]
    return spans


def make_wide_model(model: Path, folder: Path) -> Path:
    """Writes a random checkpoint like ``model``, with a larger vocabulary; returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, vocab_size=151_936)
    torch.manual_seed(0)
    network: Any = AutoModelForCausalLM
    network.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def serve(setup: str, dtype: str, model: Path, max_length: int) -> None:
    """Loads an engine, then scores all spans once for each line on stdin.

    The first line holds the cores to use and the spans.
    """
    cores, spans = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, cores)  # before a library counts the cores
    spans = [Span(ids, tuple(map(tuple, ranges))) for ids, ranges in spans]
    started = time.perf_counter()
    engine = load_engine(setup, dtype, model, max_length)
    answer({"load_s": time.perf_counter() - started})
    for _ in sys.stdin:
        engine.logprobs(spans, lambda _count: None)
        answer({"peak_gib": peak_bytes() / 2**30})


def load_engine(setup: str, dtype: str, model: Path, max_length: int) -> Any:
    if setup == PLAIN:
        return PlainTransformers(model, dtype)
    return build_engine(
        engine_settings(configure(setup, dtype).engine),
        read_checkpoint(model),
        max_length=max_length,
        trust_remote_code=False,
    )


def configure(setup: str, dtype: str) -> Config:
    """The configuration of a set-up, in ``dtype`` unless it says otherwise."""
    overrides = () if setup == PLAIN else SETUPS.get(setup) or setup.split(",")
    return compose(f"engine.dtype={dtype}", *overrides)


class PlainTransformers:
    """A simple scorer with transformers, as one would write it without looking for speed."""

    def __init__(self, model: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        network: Any = AutoModelForCausalLM
        self._model = network.from_pretrained(model, dtype=dtype).eval()

    def logprobs(self, spans: list[Span], _on_scored: Any) -> list[Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        found = []
        longest_first = sorted(spans, key=lambda span: -len(span.token_ids))
        for start in range(0, len(spans), PLAIN_ROWS):
            batch = longest_first[start : start + PLAIN_ROWS]
            lengths = torch.tensor([len(span.token_ids) for span in batch])
            ids = pad_sequence([torch.tensor(span.token_ids) for span in batch], batch_first=True)
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            with torch.inference_mode():
                logits = self._model(ids, attention_mask=mask.long(), use_cache=False).logits
                of_all = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])
            found += [
                row[span.start - 1 : len(span.token_ids) - 1, 0]
                for row, span in zip(of_all, batch, strict=True)
            ]
        return found


def answer(found: dict[str, float]) -> None:
    print(json.dumps(found), flush=True)


class EngineProcess:
    """An engine in its own process, which waits for its turn."""

    def __init__(
        self,
        setup: str,
        model: Path,
        spans: list[Span],
        cores: list[int],
        *,
        environment: Mapping[str, str] | None = None,
        dtype: str = BF16,
        max_length: int = MAX_LENGTH,
    ) -> None:
        command = [sys.executable, "-m", "bench.throughput", "--serve", setup, "--dtype", dtype]
        self._process = subprocess.Popen(
            [*command, "--model", str(model), "--max-length", str(max_length)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.send(json.dumps([cores, spans]))

    def send(self, line: str = "") -> None:
        """Sends a line; an empty line asks for one pass over the spans."""
        print(line, file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, float]:
        for line in self._process.stdout or ():
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"an engine ended with exit code {self._process.wait()}")


class Contender:
    """The engines of one set-up, usually one, which run at the same time."""

    def __init__(self, setup: str, dtype: str, model: Path, spans: list[Span]) -> None:
        count = configure(setup, dtype).executor.num_workers or 1
        self._engines = [
            EngineProcess(setup, model, share, split_cores(slot, count), dtype=dtype)
            for slot, share in enumerate(deal(spans, count))
        ]
        self.load_s = max(engine.receive()["load_s"] for engine in self._engines)

    def run(self) -> dict[str, float]:
        """Runs one pass over the spans; returns the time until all are done, and all memory."""
        started = time.perf_counter()
        for engine in self._engines:
            engine.send()
        peaks = [engine.receive()["peak_gib"] for engine in self._engines]
        return {"seconds": time.perf_counter() - started, "peak_gib": sum(peaks)}


def deal(spans: list[Span], count: int) -> list[list[Span]]:
    """Splits spans into shares with about the same number of tokens, as many shards would have."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(spans)), key=lambda index: -len(spans[index].token_ids)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += len(spans[index].token_ids)
    return [[spans[index] for index in sorted(share)] for share in shares]


def needed_flops(model: Path, spans: list[Span]) -> float:
    """The operations that IFD needs: layers on all tokens, the head on answer rows, attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    network: Any = AutoModelForCausalLM.from_pretrained(model)
    head = network.get_output_embeddings().weight
    embeddings = {id(head), id(network.get_input_embeddings().weight)}
    layers = sum(value.numel() for value in network.parameters() if id(value) not in embeddings)
    width = config.num_attention_heads * config.head_dim
    total = 0.0
    for span in spans:
        length = len(span.token_ids)
        total += 2 * layers * length + 2 * head.numel() * span.num_answer_tokens
        total += 4 * config.num_hidden_layers * width * length * (length + 1) / 2
    return total


def measure_ceiling(width: int = 4096, repeats: int = 5, dtype: str = BF16) -> float:
    """FLOP/s of a square matrix product: the median after one warm-up."""
    import torch

    left, right = (torch.randn(width, width).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * width**3 / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workload", choices=("average", "longest", "wide"), default="average")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=(BF16, "float32"), default=BF16)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--setup", nargs="+", default=DEFAULT_SETUPS)
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH)
    parser.add_argument("--serve", help="for this command's own use")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.dtype, arguments.model, arguments.max_length)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.workload == "wide":
            model = make_wide_model(model, Path(folder) / "wide")
            spans = make_up_spans(arguments.rows, 151_936)
        else:
            longest = arguments.workload == "longest"
            spans = build_spans(arguments.data, model, arguments.rows, longest=longest)
        compare(model, spans, arguments)


def compare(model: Path, spans: list[Span], arguments: argparse.Namespace) -> None:
    """Loads all engines, runs them in turn, and prints the table."""
    dtype = arguments.dtype
    ceilings = [measure_ceiling(dtype=dtype)]
    contenders = {
        setup: Contender(setup, dtype, model, spans)
        for setup in tqdm(arguments.setup, desc="loading")
    }
    passes: dict[str, list[dict[str, float]]] = {setup: [] for setup in contenders}
    for _ in tqdm(range(1 + arguments.repeats), desc="passes"):
        for setup, contender in contenders.items():
            passes[setup].append(contender.run())
            ceilings.append(measure_ceiling(dtype=dtype))
    num_tokens = sum(len(span.token_ids) for span in spans)
    tflops = statistics.median(ceilings) / 1e12
    ceiling = num_tokens * tflops * 1e12 / needed_flops(model, spans)
    print(f"{platform.machine()}, {len(CORES)} cores, {dtype}; ", end="")
    print(f"{arguments.workload}, {len(spans) // 2} rows")
    print(f"{'':<30}{'rows/s':>8}{'tokens/s':>10}{'ratio':>8}{'ceiling':>9}{'load s':>8}", end="")
    print(f"{'peak GiB':>10}   spread of passes")
    base = None
    for setup, found in passes.items():
        seconds = [one["seconds"] for one in found[1:]]
        median = statistics.median(seconds)
        base = base or median
        rate = num_tokens / median
        print(
            f"{setup:<30}{len(spans) / 2 / median:>8.2f}{rate:>10.0f}{base / median:>8.2f}"
            f"{rate / ceiling:>9.0%}{contenders[setup].load_s:>8.0f}{found[-1]['peak_gib']:>10.1f}"
            f"   {min(seconds):.1f} to {max(seconds):.1f} s"
        )
    print(f"{'ceiling':<30}{'':>8}{ceiling:>10.0f}  ({tflops:.2f} TFLOP/s)")


if __name__ == "__main__":
    main()
