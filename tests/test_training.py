"""Fine-tuning: the examples, the batches, the loss, the weights, and what survives a fault."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import open_span_builder
from cherry_vllm.schema import ROWS as ROWS_SCHEMA
from cherry_vllm.training.batches import NO_LOSS, LengthBatches, collate, split_evenly
from cherry_vllm.training.examples import Example, build_examples
from cherry_vllm.training.probe import gain_kept
from cherry_vllm.training.rounding import export_bfloat16, round_stochastically
from cherry_vllm.training.run import check_trackers
from cherry_vllm.training.trainer import answer_rows_only
from cherry_vllm.training.tuning import fine_tune, newest_whole_checkpoint
from tests.conftest import ROWS, Cli, children, start

MAX_LENGTH = 96
RECIPE: dict[str, Any] = {
    "num_epochs": 2,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "global_batch_size": 8,
    "micro_batch_tokens": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "compile_layers": False,
    "lora_rank": 0,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "fsdp": False,
    "save_steps": 2,
    "report_to": [],
    "seed": 0,
    "trust_remote_code": False,
}
PROMPT = Prompt(
    without_input="{instruction}\n",
    with_input="{instruction}\n{input}\n",
    marker="A:",
    chat=False,
    system=None,
)


def frame_of(records: list[dict[str, str]]) -> pl.DataFrame:
    lines = [
        {
            "row": row,
            "record": json.dumps(record),
            "instruction": record["instruction"],
            "input": record.get("input") or "",
            "answer": record["output"],
            "drop_reason": None if record["output"].strip() else "empty_answer",
        }
        for row, record in enumerate(records)
    ]
    return pl.DataFrame(lines, schema=ROWS_SCHEMA)


@pytest.fixture(scope="module")
def examples(tiny: Path) -> list[Example]:
    """Examples of the shipped rows under a short prompt."""
    records = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if isinstance(record.get("output"), str)]
    builder = open_span_builder(
        read_checkpoint(tiny), prompt=PROMPT, max_length=MAX_LENGTH, trust_remote_code=False
    )
    built, _ = build_examples(frame_of(records), builder, eos_token_id=2, max_length=MAX_LENGTH)
    return [example for example in built if example is not None]


def tune(tiny: Path, examples: list[Example], folder: Path, **changes: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    return fine_tune(read_checkpoint(tiny), examples, tokenizer, folder, **(RECIPE | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(left: Path, right: Path, atol: float) -> None:
    one, other = weights(left), weights(right)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0)


# --- examples


def test_an_example_is_the_whole_text_encoded_at_once_and_eos(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    records = [
        {"instruction": "Name a river.", "input": "", "output": "The Danube."},
        {"instruction": "Translate.", "input": "Haus", "output": "house " * 200},
        {"instruction": "Say nothing.", "input": "", "output": " "},
        {"instruction": "long " * 300, "input": "", "output": "x"},
    ]
    builder = open_span_builder(
        read_checkpoint(tiny), prompt=PROMPT, max_length=64, trust_remote_code=False
    )
    eos = tokenizer.eos_token_id
    built, dropped = build_examples(frame_of(records), builder, eos_token_id=eos, max_length=64)
    short, cut = built[0], built[1]
    assert short is not None
    assert cut is not None
    assert short.token_ids == [*tokenizer("Name a river.\nThe Danube.")["input_ids"], eos]
    assert short.start == len(tokenizer("Name a river.\n")["input_ids"])
    whole = tokenizer("Translate.\nHaus\n" + "house " * 200)["input_ids"]
    assert cut.token_ids == whole[:64]
    assert built[2:] == [None, None]
    assert dropped == Counter(empty_answer=1, prompt_too_long=1)


def test_an_answer_that_ends_at_the_limit_has_no_eos(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    records = [{"instruction": "Name a river.", "input": "", "output": "The Danube."}]
    length = len(tokenizer("Name a river.\nThe Danube.")["input_ids"])
    for limit, ends_in_eos in [(length, False), (length + 1, True)]:
        builder = open_span_builder(
            read_checkpoint(tiny), prompt=PROMPT, max_length=limit, trust_remote_code=False
        )
        ((example,), _) = build_examples(
            frame_of(records), builder, eos_token_id=2, max_length=limit
        )
        assert example is not None
        assert (example.token_ids[-1] == 2) is ends_in_eos


# --- batches


def batches_of(lengths: list[int], **changes: Any) -> LengthBatches:
    settings = {
        "global_batch_size": 32,
        "micro_batch_tokens": 500,
        "num_processes": 1,
        "seed": 0,
    }
    return LengthBatches(lengths, **(settings | changes))


@pytest.mark.parametrize("num_rows", [1, 5, 32, 33, 64, 100, 129])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_every_row_once_an_epoch_in_the_same_global_batches(
    num_rows: int, num_processes: int
) -> None:
    num_rows = max(num_rows, num_processes)  # fewer are refused
    lengths = np.random.default_rng(num_rows).integers(5, 200, num_rows).tolist()
    seen = []
    for tokens in (200, 1000, 10**6):
        batches = batches_of(lengths, num_processes=num_processes, micro_batch_tokens=tokens)
        parts = list(batches)
        assert len(parts) == len(batches)
        assert len(parts) % num_processes == 0
        assert all(parts)
        assert sorted(row for part in parts for row in part) == list(range(num_rows))
        per_update = batches.steps_per_update * num_processes
        updates = [parts[first : first + per_update] for first in range(0, len(parts), per_update)]
        seen.append([frozenset(row for part in update for row in part) for update in updates])
    assert seen[0] == seen[1] == seen[2]


def test_epochs_differ_and_a_resumed_epoch_is_the_same() -> None:
    batches = batches_of(list(range(1, 100)))
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert first != second
    again = batches_of(list(range(1, 100)))
    again.set_epoch(1)
    assert list(again) == second


def test_micro_batches_are_of_like_length_and_size() -> None:
    lengths = np.random.default_rng(0).lognormal(4.3, 0.7, 640).astype(int).clip(8, 512).tolist()
    batches = batches_of(lengths, global_batch_size=128, micro_batch_tokens=1024)
    padded = [len(part) * max(lengths[row] for row in part) for part in batches]
    assert sum(padded) < 1.12 * sum(lengths)
    assert max(padded) < 1.5 * 1024
    plain = np.array(lengths).reshape(-1, 8).max(axis=1).sum() * 8
    assert sum(padded) < 0.7 * plain


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 7])
def test_the_split_is_the_best_there_is(num_parts: int) -> None:
    generator = np.random.default_rng(num_parts)
    for _ in range(30):
        lengths = sorted(generator.integers(1, 40, generator.integers(num_parts, 9)), reverse=True)
        lengths = [int(length) for length in lengths]
        counts = split_evenly(lengths, num_parts)
        assert len(counts) == num_parts
        assert sum(counts) == len(lengths)
        assert min(counts) >= 1
        assert largest(lengths, counts) == min(
            largest(lengths, other) for other in compositions(len(lengths), num_parts)
        )


def largest(lengths: list[int], counts: list[int]) -> int:
    starts = np.cumsum([0, *counts[:-1]])
    return max(lengths[first] * count for first, count in zip(starts, counts, strict=True))


def compositions(total: int, parts: int) -> list[list[int]]:
    if parts == 1:
        return [[total]]
    return [
        [first, *rest]
        for first in range(1, total - parts + 2)
        for rest in compositions(total - first, parts - 1)
    ]


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows for 2 processes"):
        batches_of([9], num_processes=2)


# --- the loss and its gradient


def test_the_head_on_answer_rows_alone_gives_loss_and_gradient_of_the_whole(
    tiny: Path, examples: list[Example]
) -> None:
    batch = collate(examples[:6], pad_token_id=0)
    labels = batch["labels"][:, 1:]
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model(**batch).loss.backward()
    whole = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with answer_rows_only(model.get_output_embeddings(), labels != NO_LOSS):
        logits = model(**inputs).logits
    targets = labels[labels != NO_LOSS]
    assert logits.shape == (1, len(targets), model.config.vocab_size)
    cross_entropy(logits[0], targets).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, whole[name], atol=1e-6, rtol=1e-4)
    assert model(**inputs).logits.shape[:2] == batch["input_ids"].shape  # the hook is gone


def test_fine_tuning_is_adamw_on_the_mean_over_the_global_batch(
    tiny: Path, examples: list[Example], tmp_path: Path
) -> None:
    losses = tune(tiny, examples, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, weight_decay=0, eps=1e-8)
    num_steps = 2 * math.ceil(len(examples) / 8)
    warmup = math.ceil(0.1 * num_steps)
    expected = []
    for step in range(num_steps):
        epoch, position = divmod(step, num_steps // 2)
        order = np.random.default_rng([0, epoch]).permutation(len(examples))
        rows = order[8 * position : 8 * position + 8]
        done = (step - warmup) / (num_steps - warmup)
        factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = 3e-3 * factor
        batch = collate([examples[row] for row in rows], pad_token_id=0)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss))
    np.testing.assert_allclose([entry["loss"] for entry in losses], expected, atol=1e-4)
    saved = weights(tmp_path / "model")
    for name, value in model.state_dict().items():
        if name in saved:  # the tied head is stored once
            torch.testing.assert_close(saved[name], value, atol=2e-5, rtol=0)
    assert sum(expected[num_steps // 2 :]) < sum(expected[: num_steps // 2])
    assert [entry["step"] for entry in losses] == list(range(1, num_steps + 1))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_cache"]
    assert not list((tmp_path / "model").glob("*.bin"))  # nothing pickled is handed on


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_tokens": 50},
        {"gradient_checkpointing": True},
        {"compile_layers": True},
        {"compile_layers": True, "gradient_checkpointing": True},
    ],
)
def test_settings_of_the_machine_change_no_weight(
    tiny: Path, examples: list[Example], tmp_path: Path, changes: dict[str, Any]
) -> None:
    tune(tiny, examples, tmp_path / "one")
    tune(tiny, examples, tmp_path / "other", **changes)
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "other" / "model", atol=2e-5)


def test_lora_moves_the_merged_weights_and_nothing_else(
    tiny: Path, examples: list[Example], tmp_path: Path
) -> None:
    losses = tune(tiny, examples, tmp_path, lora_rank=4, learning_rate=0.03, num_epochs=10)
    values = [entry["loss"] for entry in losses]
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.01
    base, merged = weights(tiny), weights(tmp_path / "model")
    assert base.keys() == merged.keys()
    moved = {name for name in base if not torch.equal(base[name], merged[name])}
    assert moved == {name for name in base if "_proj." in name}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "LlamaForCausalLM"


# --- faults


def test_divergence_is_told_and_its_weights_are_not_saved(
    tiny: Path, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"diverged: (loss|grad_norm) is (nan|inf).*learning_rate"):
        tune(tiny, examples, tmp_path, learning_rate=1e30, max_grad_norm=0.0, save_steps=1)
    assert not (tmp_path / "model").exists()
    for file in (tmp_path / "checkpoints").glob("*/model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(file).values())


def test_memory_that_runs_out_is_told(tiny: Path, examples: list[Example], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    long = [Example(example.token_ids * 80, example.start) for example in examples[:8]]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, hard))
    try:
        with pytest.raises(UserError, match=r"out of memory.*micro_batch_tokens"):
            tune(tiny, long, tmp_path, micro_batch_tokens=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_fsdp_without_gpus_is_refused(tiny: Path, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.fsdp=true: needs GPUs and torchrun"):
        tune(tiny, examples, tmp_path, fsdp=True)


def test_unknown_names_are_refused(tiny: Path, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lr_scheduler=cosinus: choose from .*cosine"):
        tune(tiny, examples, tmp_path, lr_scheduler="cosinus")
    with pytest.raises(UserError, match="report_to=nosuch"):
        check_trackers(["nosuch"])


def test_a_tokenizer_without_pad_token_trains_the_same(
    tiny: Path, examples: list[Example], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.pad_token = None
    fine_tune(read_checkpoint(tiny), examples, tokenizer, tmp_path / "one", **RECIPE)
    tune(tiny, examples, tmp_path / "other")
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "other" / "model", atol=0)


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path) is None
    for step, state in [(2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, '{"glo')]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-14").mkdir()
    assert newest_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# --- the command


def train_command(tiny: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        "train",
        f"data.path={ROWS}",
        f"model.path={tiny}",
        f"run_dir={run_dir}",
        "max_length=128",
        "train.global_batch_size=7",
        "train.learning_rate=0.001",
        "train.compile_layers=false",
        *more,
    ]


def losses_of(run_dir: Path) -> list[float]:
    (file,) = run_dir.glob("models/*/losses.csv")
    return pl.read_csv(file)["loss"].to_list()


@pytest.fixture(scope="module")
def trained(tiny: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = cli(*train_command(tiny, folder, "train.num_probe_rows=4"))
    assert done.returncode == 0, done.stderr
    assert "loss on probe rows" in done.stdout
    return folder


def test_what_a_training_leaves(trained: Path) -> None:
    (folder,) = trained.glob("models/cherry-*")
    names = {path.name for path in folder.iterdir()}
    assert names == {"model", "losses.csv", "losses.png", "train.json"}
    facts = json.loads((folder / "train.json").read_text())
    assert facts["num_trained"] + sum(facts["dropped"].values()) == facts["num_rows"] == 26
    assert facts["num_steps"] == 3 * math.ceil(facts["num_trained"] / 7)
    assert facts["probe"]["losses"]["model"] < facts["probe"]["losses"]["base"]
    assert len(facts["probe"]["rows"]) == 4


def test_trained_before_is_not_trained_again(tiny: Path, cli: Cli, trained: Path) -> None:
    (file,) = trained.glob("models/*/train.json")
    stamp = file.stat().st_mtime_ns
    more = ("train.num_probe_rows=4", "train.micro_batch_tokens=999")  # decides no weight
    again = cli(*train_command(tiny, trained, *more))
    assert "trained before, nothing to do" in again.stderr
    assert file.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("killed", ["command", "training"])
def test_kill_9_in_mid_epoch_and_the_same_command_give_the_same_losses(
    tiny: Path, cli: Cli, trained: Path, tmp_path: Path, killed: str
) -> None:
    command = train_command(tiny, tmp_path, "train.num_probe_rows=4", "train.save_steps=0.15")
    process = start(*command)
    while process.poll() is None and not list(tmp_path.glob("models/*/checkpoints/*-4/trainer_*")):
        time.sleep(0.01)
    (child,) = children(process.pid)
    os.kill(process.pid if killed == "command" else child, signal.SIGKILL)
    _, stderr = process.communicate()
    if killed == "training":
        assert process.returncode == 2
        assert "was killed by SIGKILL, most often for want of memory; the same" in stderr
        assert "Traceback" not in stderr
    (checkpoints,) = tmp_path.glob("models/*/checkpoints")
    (checkpoints / "checkpoint-99").mkdir()  # as a kill while it was written would leave it
    (checkpoints / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "do not match" not in done.stderr  # transformers, of 0.15 and 2 steps
    assert losses_of(tmp_path) == losses_of(trained)
    (left,), (right,) = tmp_path.glob("models/*/model"), trained.glob("models/*/model")
    assert_same_weights(left, right, atol=0)


def test_two_processes_of_torchrun_give_the_losses_of_one(
    tiny: Path, trained: Path, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = train_command(tiny, tmp_path, "train.num_probe_rows=4")
    done = subprocess.run(
        [*torchrun, "--standalone", "-m", "cherry_vllm", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(trained), atol=2e-3)
    (left,), (right,) = tmp_path.glob("models/*"), trained.glob("models/*")
    assert left.name == right.name  # so that a pipeline goes on from what torchrun trained


def test_mistakes_of_training_cost_one_line(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"instruction": "a", "output": " "}\n')
    for more, words in [
        ([f"data.path={empty}"], ["no row to train on", "1 empty_answer"]),
        (["train.fsdp=true"], ["train.fsdp=true", "torchrun"]),
        (["train.num_epoch=3"], ["num_epoch"]),
    ]:
        done = cli(*train_command(tiny, tmp_path / "run"), *more)
        assert done.returncode == 2, done.stderr
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("cherry-vllm: ")]
        assert all(word in line for word in words)
        assert "Traceback" not in done.stderr


# --- bf16


def test_rounding_takes_a_neighbour_and_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator) * torch.logspace(-6, 3, 1000)
    total = torch.zeros(1000, dtype=torch.float64)
    step = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    above = ((values.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    for _ in range(400):
        rounded = round_stochastically(values, generator)
        assert rounded.dtype == torch.bfloat16
        assert ((rounded.float() == step) | (rounded.float() == above)).all()
        total += rounded.double()
    error = (total / 400 - values.double()) / (above - step).double()
    assert error.abs().max() < 0.15  # six standard errors of a coin toss
    assert abs(float(error.mean())) < 0.005


def test_rounding_leaves_what_bf16_can_hold_and_what_is_no_float() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, 1e-40]).bfloat16().float()
    assert torch.equal(round_stochastically(exact, generator).float(), exact)
    integers = torch.arange(5)
    assert round_stochastically(integers, generator) is integers


def test_the_export_loads_and_repeats(trained: Path, tmp_path: Path) -> None:
    (model,) = trained.glob("models/*/model")
    for name in ("one", "two"):
        export_bfloat16(model, tmp_path / name, seed=3)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert json.loads((tmp_path / "one" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("losses", "kept"), [((2.0, 1.0, 1.0), 1), ((2.0, 1.0, 1.64), 0.36), ((1.0, 1.0, 1.0), None)]
)
def test_gain_kept(losses: tuple[float, float, float], kept: float | None) -> None:
    assert gain_kept(*losses) == (kept if kept is None else pytest.approx(kept))
