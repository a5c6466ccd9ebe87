"""Examples to batches: every optimizer step gets the same rows, however they are split."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from cherry_vllm.engines import Span

NO_LOSS = -100  # the label that the loss and token counts ignore


def collate(examples: Sequence[Span], *, pad_token_id: int) -> dict[str, Tensor]:
    """A micro-batch, padded on the right: ``input_ids``, ``attention_mask`` and ``labels``.

    All are int64 of shape [examples, longest]; ``labels`` is :data:`NO_LOSS` outside the ranges.
    """
    shape = len(examples), max(len(example.token_ids) for example in examples)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, NO_LOSS)
    for line, (token_ids, ranges) in enumerate(examples):
        input_ids[line, : len(token_ids)] = torch.tensor(token_ids)
        attention_mask[line, : len(token_ids)] = 1
        for start, stop in ranges:
            labels[line, start:stop] = input_ids[line, start:stop]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class LengthBatches(Sampler[list[int]]):
    """Micro-batches of rows of similar length, of similar size in tokens.

    An epoch is shuffled and cut into global batches, one for each optimizer step. In a global
    batch, the rows are sorted by length and split into micro-batches with about the same number of
    padded tokens. This saves padding and changes no gradient, as the loss is the mean over the
    global batch's answer tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        global_batch_size: int,
        micro_batch_tokens: int,
        num_processes: int,
        seed: int,
    ) -> None:
        """Takes lengths in tokens; an average micro-batch stays below ``micro_batch_tokens``.

        Raises:
            ValueError: there are fewer rows than processes.
        """
        if len(lengths) < num_processes:
            raise ValueError(f"{len(lengths)} rows for {num_processes} processes")
        self._lengths = np.asarray(lengths)
        self._num_processes = num_processes
        self._seed = seed
        self._epoch = 0
        self._starts = list(range(0, len(lengths), global_batch_size))
        if len(self._starts) > 1 and len(lengths) - self._starts[-1] < num_processes:
            self._starts.pop()  # too few rows for their own step: they join the previous one
        largest = min(global_batch_size, len(lengths))
        wanted = largest * self._lengths.mean() / (micro_batch_tokens * num_processes)
        self.steps_per_update = min(int(np.ceil(wanted)), largest // num_processes)
        """Micro-batches that each process runs before an optimizer step."""
        self.num_updates = len(self._starts)
        """Optimizer steps per epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle; the trainer calls this, also when it resumes."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._num_parts(stop - start) for start, stop in self._global_batches())

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._lengths))
        for start, stop in self._global_batches():
            rows = order[start:stop]
            rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
            counts = split_evenly(self._lengths[rows].tolist(), self._num_parts(len(rows)))
            for part in np.split(rows, np.cumsum(counts)[:-1]):
                yield part.tolist()

    def _global_batches(self) -> Iterator[tuple[int, int]]:
        return pairwise([*self._starts, len(self._lengths)])

    def _num_parts(self, num_rows: int) -> int:
        per_process = min(self.steps_per_update, num_rows // self._num_processes)
        return per_process * self._num_processes


def split_evenly(lengths: list[int], num_parts: int) -> list[int]:
    """Row counts of ``num_parts`` runs, so that the largest has as few padded tokens as possible.

    ``lengths`` are in descending order, and there are at least ``num_parts``.
    """
    low, high = lengths[0], lengths[0] * len(lengths)
    while low < high:
        limit = (low + high) // 2
        if len(_fill(lengths, limit)) <= num_parts:
            high = limit
        else:
            low = limit + 1
    counts = _fill(lengths, low)
    while len(counts) < num_parts:  # the trainer needs exactly this many
        largest = counts.index(max(counts))
        half = counts[largest] // 2
        counts[largest : largest + 1] = [counts[largest] - half, half]
    return counts


def _fill(lengths: list[int], limit: int) -> list[int]:
    """Row counts of runs that are each as long as ``limit`` padded tokens allow."""
    counts, start = [], 0
    while start < len(lengths):
        counts.append(min(limit // lengths[start], len(lengths) - start))
        start += counts[-1]
    return counts
