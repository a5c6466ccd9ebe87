"""Training throughput: this project's trainer compared with plain transformers and TRL.

    python -m bench.training --data FILE [--rows 64] [--repeats 2] [--model FOLDER]
        [--only SETUP] [overrides of `cherry-vllm train` ...]

Every set-up trains for two epochs on the same rows, with one optimizer step per epoch, in fp32 with
bf16 products. Each runs in its own process. They alternate, so that a noisy machine disturbs all of
them equally, and the ceiling is measured after each. Only the second step counts; the time of the
first, in which layers are compiled, is shown too. Tokens do not include padding; the memory of
several processes is added up. The ceiling is the speed of the machine's bf16 matrix product,
divided by 6 x parameters operations per token, which counts the LM head on every token. TRL is left
out if it is not installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from bench.demo import MODEL
from bench.throughput import measure_ceiling
from cherry_vllm.commands.train import training_settings
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import single_turn
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import load_tokenizer, read_checkpoint
from cherry_vllm.prompts.spans import AnswerSpans, open_span_builder
from cherry_vllm.runtime.memory import peak_bytes
from cherry_vllm.training import tuning
from cherry_vllm.training.batches import NO_LOSS, collate
from cherry_vllm.training.examples import end_answers
from cherry_vllm.training.processes import child_environment
from cherry_vllm.training.trainer import AnswerTrainer

FIELDS = ("instruction", "input", "output")
MAX_LENGTH = 512
MICRO_BATCH_ROWS = 8  # a common choice for a plain trainer
PER_CORE = "cherry-vllm, 1 process a core"
CEILING = "ceiling"
SETUPS = ("plain Trainer", "TRL SFTTrainer", "cherry-vllm, not compiled", "cherry-vllm", PER_CORE)


def load_examples(data: Path, model: Path, rows: int) -> tuple[list[Any], Any]:
    """The rows as this project's training examples, and the tokenizer."""
    with data.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, rows)]
    prompt = prompt_of(compose())
    builder = open_span_builder(
        read_checkpoint(model), prompt=prompt, max_length=MAX_LENGTH, trust_remote_code=False
    )
    triples = [single_turn(*(record[key] for key in FIELDS)) for record in records]
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    pairs = [pair for pair in builder.build(triples) if isinstance(pair, AnswerSpans)]
    spans = [span for pair in pairs for span in pair.conditioned]
    return [end_answers(span, tokenizer.eos_token_id, MAX_LENGTH) for span in spans], tokenizer


class Clock(TrainerCallback):
    """Records when training began and when each optimizer step ended, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.times.append(time.monotonic())

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.times.append(time.monotonic())

    def report(self) -> None:
        began, first, second = self.times
        peak = peak_bytes() / 2**30
        peak *= int(os.environ.get("WORLD_SIZE", "1"))
        result = {"seconds": second - first, "first": first - began, "peak_gib": peak}
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(result), flush=True)


def common_arguments(folder: str, num_rows: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_train_epochs": 2,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": MICRO_BATCH_ROWS,
        "gradient_accumulation_steps": -(-num_rows // MICRO_BATCH_ROWS),
        "bf16": True,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def train_plain(examples: list[Span], model: Path, folder: str, clock: Clock) -> None:
    arguments = common_arguments(folder, len(examples)) | {"remove_unused_columns": False}
    dataset: Any = examples
    Trainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        TrainingArguments(**arguments),
        train_dataset=dataset,
        data_collator=partial(collate, pad_token_id=0),
        callbacks=[clock],
    ).train()


def train_trl(examples: list[Span], tokenizer: Any, model: Path, folder: str, clock: Clock) -> None:
    import pyarrow as pa
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **common_arguments(folder, len(examples)),
        max_length=MAX_LENGTH,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = [
        {"input_ids": ids, "labels": [NO_LOSS] * start + ids[start:]}
        for ids, ((start, _),) in examples
    ]
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        arguments,
        # With a fingerprint, because hashing fails with some releases of pyarrow.
        train_dataset=Dataset(pa.Table.from_pylist(rows), fingerprint="rows"),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()


def train_ours(
    examples: list[Span],
    tokenizer: Any,
    model: Path,
    folder: str,
    clock: Clock,
    *,
    overrides: Sequence[str],
) -> None:
    config = compose("train.num_epochs=2", "train.save_steps=1000", *overrides)
    settings = training_settings(config, config.train, prompt_of(config))
    whole = AnswerTrainer.train

    def train(trainer: AnswerTrainer, **keywords: Any) -> Any:
        trainer.add_callback(clock)
        return whole(trainer, **keywords)

    AnswerTrainer.train = train  # type: ignore[assignment, method-assign]
    tuning.fine_tune(
        read_checkpoint(model),
        examples,
        tokenizer,
        Path(folder),
        recipe=replace(settings.recipe, global_batch_size=len(examples)),
        machine=settings.machine,
        seed=0,
        trust_remote_code=False,
    )


def run_one(setup: str, arguments: argparse.Namespace) -> None:
    examples, tokenizer = load_examples(arguments.data, arguments.model, arguments.rows)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if setup == "plain Trainer":
            train_plain(examples, arguments.model, folder, clock)
        elif setup == "TRL SFTTrainer":
            train_trl(examples, tokenizer, arguments.model, folder, clock)
        else:
            inputs = (examples, tokenizer, arguments.model, folder, clock)
            not_compiled = ["train.compile_layers=false"] if "not compiled" in setup else []
            train_ours(*inputs, overrides=[*not_compiled, *arguments.overrides])
    clock.report()


def ceiling_tokens(model: Path) -> float:
    """Tokens per second if training consisted only of its matrix products at full speed."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    parameters = sum(value.numel() for value in network.parameters())
    return measure_ceiling(width=2048, repeats=100) / (6 * parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--setup", choices=(*SETUPS, CEILING), help="run only this, here")
    parser.add_argument("--only", choices=SETUPS, action="append")
    parser.add_argument("overrides", nargs="*", help="settings for `cherry-vllm train`")
    arguments = parser.parse_args()
    if arguments.setup == CEILING:
        print(json.dumps({"seconds": 1 / ceiling_tokens(arguments.model)}))
        return
    if arguments.setup:
        run_one(arguments.setup, arguments)
        return
    examples, _ = load_examples(arguments.data, arguments.model, arguments.rows)
    tokens = sum(len(example.token_ids) for example in examples)
    asked = arguments.only or SETUPS
    setups = [name for name in asked if find_spec("trl") or not name.startswith("TRL")]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (*setups, CEILING)}
    for _ in range(arguments.repeats):
        for name in setups:
            for each in (name, CEILING):
                results[each].append(run_apart(each))
                print(f"{each}: {results[each][-1]}", file=sys.stderr, flush=True)
    report(results, tokens)


def run_apart(setup: str) -> dict[str, float]:
    """Measures a set-up, or the ceiling, in its own process."""
    start = [sys.executable]
    if setup == PER_CORE:
        num_cores = len(os.sched_getaffinity(0))
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={num_cores}"]
    command = [*start, "-m", "bench.training", *sys.argv[1:], "--setup", setup]
    # The same environment as on the command line.
    ours = {"THP_MEM_ALLOC_ENABLE": "1", **child_environment()} if "cherry" in setup else {}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **ours}
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def report(results: dict[str, list[dict[str, float]]], tokens: int) -> None:
    ceiling = 1 / statistics.median(one["seconds"] for one in results.pop(CEILING))
    medians = {
        name: statistics.median(one["seconds"] for one in found) for name, found in results.items()
    }
    base = medians.get("plain Trainer", next(iter(medians.values())))
    print(f"{tokens} tokens; ceiling {ceiling:.0f} tokens/s")
    print(f"{'':<32}{'tokens/s':>10}{'ratio':>8}{'ceiling':>9}{'first s':>9}{'peak GiB':>10}")
    for name, seconds in medians.items():
        peak = max(one["peak_gib"] for one in results[name])
        first = statistics.median(one["first"] for one in results[name])
        rate = tokens / seconds
        print(
            f"{name:<32}{rate:>10.0f}{base / seconds:>8.2f}{rate / ceiling:>9.0%}"
            f"{first:>9.0f}{peak:>10.1f}"
        )


if __name__ == "__main__":
    main()
