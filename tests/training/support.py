"""Small trainings of the tiny model, and the network that each of them trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.conversation import frame_messages, single_turn
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.schema import ROWS as ROWS_SCHEMA
from cherry_vllm.training.recipe import Machine, Recipe
from cherry_vllm.training.trainer import AnswerTrainer
from cherry_vllm.training.tuning import fine_tune

MAX_LENGTH = 96
RECIPE = Recipe(
    num_epochs=2,
    learning_rate=3e-3,
    lr_scheduler="cosine",
    warmup_ratio=0.1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    global_batch_size=8,
    bf16=False,
    lora_rank=0,
    lora_alpha=32,
    lora_dropout=0.0,
)
LORA = replace(RECIPE, lora_rank=4, learning_rate=0.03)
MACHINE = Machine(
    micro_batch_tokens=256,
    gradient_checkpointing=False,
    compile_layers=False,
    fsdp=False,
    save_steps=2,
    report_to=(),
)
PROMPT = Prompt(
    without_input="{instruction}\n",
    with_input="{instruction}\n{input}\n",
    marker="A:",
    chat=False,
    system=None,
)
TOKEN_IDS = torch.arange(20, 70)[None]  # what logits are compared on


@dataclass(frozen=True)
class Tuned:
    """What a training left, and what its network said at the end."""

    folder: Path
    losses: list[dict[str, float]]
    logits: Tensor  # of the trained network itself

    @property
    def model(self) -> Path:
        return self.folder / "model"


def tune(
    checkpoint: Path,
    examples: Sequence[Span],
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    machine: Machine = MACHINE,
    tokenizer: Any = None,
) -> Tuned:
    """Trains in this process."""
    whole, logits = AnswerTrainer.train, []

    def train(trainer: AnswerTrainer, **keywords: Any) -> Any:
        done = whole(trainer, **keywords)
        logits.append(logits_of(trainer.model))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerTrainer, "train", train)
        losses = fine_tune(
            read_checkpoint(checkpoint),
            examples,
            tokenizer or AutoTokenizer.from_pretrained(checkpoint),
            folder,
            recipe=recipe,
            machine=machine,
            seed=0,
            trust_remote_code=False,
        )
    return Tuned(folder, losses, logits[0])


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """A network's logits on :data:`TOKEN_IDS`."""
    mask = torch.ones_like(TOKEN_IDS)
    logits: Tensor = model.eval()(input_ids=TOKEN_IDS, attention_mask=mask).logits
    return logits


def load_logits(folder: Path) -> Tensor:
    """The logits of a checkpoint as anyone would load it, computed in fp32."""
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def assert_kept(copy: Path, tuned: Tuned, base: Path) -> None:
    """A rounded copy is far closer to the trained network than the network is to its base."""
    lost = (load_logits(copy) - tuned.logits).abs().mean()
    learned = (load_logits(base) - tuned.logits).abs().mean()
    assert lost < 0.1 * learned


def load_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(left: Path, right: Path, atol: float) -> None:
    one, other = load_weights(left), load_weights(right)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0)


def frame_of(records: Sequence[dict[str, str]]) -> pl.DataFrame:
    """Records in the form of row shards."""
    lines = [
        {
            "row": row,
            "record": json.dumps(record),
            "tools": None,
            "drop_reason": None if record["output"].strip() else "empty_answer",
        }
        for row, record in enumerate(records)
    ]
    messages = frame_messages(
        [
            single_turn(record["instruction"], record.get("input") or "", record["output"]).messages
            for record in records
        ]
    )
    schema = {name: ROWS_SCHEMA[name] for name in ROWS_SCHEMA if name != "messages"}
    return pl.DataFrame(lines, schema=schema).with_columns(messages=messages).select(*ROWS_SCHEMA)
