"""Training throughput: this project's trainer beside plain transformers and TRL.

    python -m bench.training --data FILE [--rows 128] [--repeats 2] [--model FOLDER]

Every set-up trains on the same rows, one optimizer step for each 128, in fp32 with bf16 products;
each runs in a process of its own, in turns, so that a noisy machine disturbs all alike. Tokens are
real ones, without padding. The ceiling is the machine's bf16 matrix product by 6 x parameters
operations a token, which counts the LM head on every token. TRL is left out where it is not
installed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from bench.agreement import MODEL

MAX_LENGTH = 512
SETUPS = ("plain Trainer", "TRL SFTTrainer", "cherry-vllm")


def load_examples(data: Path, model: Path, rows: int) -> tuple[list[Any], Any]:
    """The rows as this project trains on them, and the tokenizer."""
    from cherry_vllm.checkpoint import load_tokenizer
    from cherry_vllm.config import compose, plain
    from cherry_vllm.spans import Pair, open_span_builder
    from cherry_vllm.training.examples import Example

    with data.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, rows)]
    prompt = plain(compose().prompt)
    builder = open_span_builder(
        model, prompt=prompt, max_length=MAX_LENGTH, trust_remote_code=False
    )
    columns = ([record[key] for record in records] for key in ("instruction", "input", "output"))
    tokenizer = load_tokenizer(model, trust_remote_code=False)
    pairs = [pair.conditioned for pair in builder.build(*columns) if isinstance(pair, Pair)]
    end = [tokenizer.eos_token_id]
    return [Example([*span.token_ids, *end][:MAX_LENGTH], span.start) for span in pairs], tokenizer


def common_arguments(folder: str) -> dict[str, Any]:
    """Batch 128 in micro-batches of 8 rows, as people set a plain trainer up."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 16,
        "bf16": True,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def train_plain(examples: list[Any], _tokenizer: Any, model: Path, folder: str) -> None:
    from functools import partial

    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from cherry_vllm.training.batches import collate

    arguments = TrainingArguments(**common_arguments(folder), remove_unused_columns=False)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    collator = partial(collate, pad_token_id=0)
    dataset: Any = examples
    timed(Trainer(network, arguments, train_dataset=dataset, data_collator=collator).train)


def train_trl(examples: list[Any], tokenizer: Any, model: Path, folder: str) -> None:
    import pyarrow as pa
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from cherry_vllm.training.batches import NO_LOSS

    arguments = SFTConfig(
        **common_arguments(folder),
        max_length=MAX_LENGTH,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = [
        {"input_ids": ids, "labels": [NO_LOSS] * start + ids[start:]} for ids, start in examples
    ]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = SFTTrainer(
        network,
        arguments,
        # A name of its own: hashing fails beside some releases of pyarrow.
        train_dataset=Dataset(pa.Table.from_pylist(rows), fingerprint="rows"),
        processing_class=tokenizer,
    )
    timed(trainer.train)


def train_ours(examples: list[Any], tokenizer: Any, model: Path, folder: str) -> None:
    from cherry_vllm.config import compose, plain
    from cherry_vllm.training import tuning
    from cherry_vllm.training.trainer import AnswerTrainer

    recipe = plain(compose("train.num_epochs=1").train)
    for key in ("name", "scorer_dtype", "num_probe_rows"):
        recipe.pop(key)
    whole = AnswerTrainer.train
    AnswerTrainer.train = lambda self, **kwargs: timed(lambda: whole(self, **kwargs))  # type: ignore
    tuning.fine_tune(
        model, examples, tokenizer, Path(folder), **recipe, seed=0, trust_remote_code=False
    )


def timed(train: Any) -> Any:
    started = time.monotonic()
    result = train()
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}), flush=True)
    return result


def run_one(setup: str, arguments: argparse.Namespace) -> None:
    examples, tokenizer = load_examples(arguments.data, arguments.model, arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        inputs = (examples, tokenizer, arguments.model, folder)
        if setup == "plain Trainer":
            train_plain(*inputs)
        elif setup == "TRL SFTTrainer":
            train_trl(*inputs)
        else:
            train_ours(*inputs)


def measure_ceiling(model: Path) -> float:
    """Tokens per second if training were nothing but its matrix products at full speed."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    parameters = sum(value.numel() for value in network.parameters())
    left = torch.randn(2048, 2048, dtype=torch.bfloat16)
    seconds = []
    for _ in range(30):
        started = time.monotonic()
        left @ left
        seconds.append(time.monotonic() - started)
    return 2 * 2048**3 / statistics.median(seconds) / (6 * parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--setup", choices=(*SETUPS, "ceiling"), help="run only this, here")
    arguments = parser.parse_args()
    if arguments.setup == "ceiling":
        print(json.dumps({"seconds": 1 / measure_ceiling(arguments.model)}))
        return
    if arguments.setup:
        run_one(arguments.setup, arguments)
        return
    examples, _ = load_examples(arguments.data, arguments.model, arguments.rows)
    tokens = sum(len(example.token_ids) for example in examples)
    setups = [name for name in SETUPS if find_spec("trl") or not name.startswith("TRL")]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (*setups, "ceiling")}
    for _ in range(arguments.repeats):
        for name, found in results.items():
            command = [sys.executable, "-m", "bench.training", *sys.argv[1:], "--setup", name]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=dict(os.environ)
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {found[-1]}", file=sys.stderr, flush=True)
    report(results, tokens)


def report(results: dict[str, list[dict[str, float]]], tokens: int) -> None:
    ceiling = 1 / statistics.median(one["seconds"] for one in results.pop("ceiling"))
    medians = {
        name: statistics.median(one["seconds"] for one in found) for name, found in results.items()
    }
    slowest = medians["plain Trainer"]
    print(f"{tokens} tokens; ceiling {ceiling:.0f} tokens/s")
    print(f"{'':<20}{'tokens/s':>10}{'ratio':>8}{'ceiling':>9}{'peak GiB':>10}")
    for name, seconds in medians.items():
        peak = max(one["peak_gib"] for one in results[name])
        rate = tokens / seconds
        print(
            f"{name:<20}{rate:>10.0f}{slowest / seconds:>8.2f}{rate / ceiling:>9.0%}{peak:>10.1f}"
        )


if __name__ == "__main__":
    main()
