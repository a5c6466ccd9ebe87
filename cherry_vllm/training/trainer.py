"""transformers' Trainer with our batches, a loss on the answer only, and a check for divergence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from cherry_vllm.engines import Span
from cherry_vllm.errors import UserError
from cherry_vllm.training.batches import NO_LOSS, LengthBatches


class AnswerTrainer(Trainer):
    """Trains on batches of :class:`LengthBatches`, and on answer tokens only."""

    def __init__(
        self, model: Any, examples: Sequence[Span], batches: LengthBatches, **arguments: Any
    ) -> None:
        super().__init__(
            model, train_dataset=examples, compute_loss_func=self._answer_loss, **arguments
        )
        self._head: nn.Module = model.get_output_embeddings()
        self._examples: Any = examples
        self._batches = batches
        self._targets = torch.empty(0)

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = self.accelerator.prepare(
            DataLoader(self._examples, batch_sampler=self._batches, collate_fn=self.data_collator)
        )
        return loader

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        labels = inputs["labels"][:, 1:]
        self._targets = labels[labels != NO_LOSS]
        with answer_rows_only(self._head, labels != NO_LOSS):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _answer_loss(
        self, outputs: Mapping[str, Tensor], _labels: Tensor, num_items_in_batch: Tensor
    ) -> Tensor:
        """The loss summed over these answer tokens, divided by their number in the global batch."""
        logits = outputs["logits"][0].float()
        return cross_entropy(logits, self._targets, reduction="sum") / num_items_in_batch


@contextmanager
def answer_rows_only(head: nn.Module, predicts_answer: Tensor) -> Iterator[None]:
    """Passes the LM head only the positions that predict an answer token.

    ``predicts_answer`` is bool of shape [rows, positions - 1]. The head then gets hidden states of
    shape [1, answer tokens, width], which saves most of its work and of the logits' memory.
    """

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][:, :-1][predicts_answer].unsqueeze(0), *inputs[1:])

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


class Divergence(TrainerCallback):
    """Ends a run whose loss or gradient is not finite, before its weights are saved."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs["logs"]
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0)):
                raise UserError(
                    f"training diverged: {name} is {logs[name]} at step {state.global_step}; lower "
                    "train.learning_rate. The last good checkpoint is kept"
                )
