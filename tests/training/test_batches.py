"""Every optimizer step sees the same rows, however they are split."""

import numpy as np
import pytest

from cherry_vllm.training.batches import LengthBatches, split_evenly


def batches_of(lengths: list[int], **changes: int) -> LengthBatches:
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
    return int(max(lengths[first] * count for first, count in zip(starts, counts, strict=True)))


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
