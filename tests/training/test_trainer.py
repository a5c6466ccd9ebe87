"""The loss of the answer alone, and its gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from cherry_vllm.engines import Span
from cherry_vllm.training.batches import NO_LOSS, collate
from cherry_vllm.training.trainer import answer_rows_only

pytestmark = pytest.mark.engine


def test_the_head_on_answer_rows_alone_gives_loss_and_gradient_of_the_whole(
    tiny: Path, examples: list[Span]
) -> None:
    batch = collate(examples[:6], pad_token_id=0)
    labels = batch["labels"][:, 1:]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    model(**batch).loss.backward()
    whole = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with answer_rows_only(model.get_output_embeddings(), labels != NO_LOSS):
        logits = model(**inputs).logits
    targets = labels[labels != NO_LOSS]
    assert logits.shape == (1, len(targets), model.config.vocab_size)
    loss: Any = cross_entropy(logits[0], targets)
    loss.backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, whole[name], atol=1e-6, rtol=1e-4)
    assert model(**inputs).logits.shape[:2] == batch["input_ids"].shape  # the hook is gone
