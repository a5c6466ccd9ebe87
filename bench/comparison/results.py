"""The results of the models, and what they say together."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from bench.comparison.bootstrap import Counts, Difference, Floats, compare, mean_loss
from bench.comparison.entries import BASE, EXPERIENCED, Entry
from cherry_vllm.selection.chosen_rows import decode_rows
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.hashes import file_sha256


@dataclass
class Result:
    """A model, and what it learned from; kept in a file as soon as something is known."""

    name: str
    decided_by: str  # names all that decides it
    seed: int | None = None  # None: the base model
    rows: str = ""  # chosen, as `encode_rows` writes them
    num_rows: int | None = None
    num_answer_tokens: int | None = None
    nll: dict[str, list[float]] = field(default_factory=dict)  # by held-out set, of each row
    tables: dict[str, str] = field(default_factory=dict)  # that it was chosen by, with their hashes

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The result in a file; None if there is none, or no whole one."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**read_json(file))
        return None

    @property
    def is_current(self) -> bool:
        """Whether the tables that it was chosen by still hold what they held."""
        files = {Path(name): held for name, held in self.tables.items()}
        return all(file.is_file() and file_sha256(file) == held for file, held in files.items())

    def write(self, file: Path) -> None:
        write_json(file, asdict(self))


@dataclass(frozen=True)
class SetLoss:
    """The loss of a model on a held-out set, in nats per answer token."""

    by_seed: list[float]
    difference: Difference | None = None  # to random rows of the same budget

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))


@dataclass(frozen=True)
class Line:
    """A model of the table: means over its seeds."""

    name: str
    seeds: list[int]
    num_rows: float | None
    num_answer_tokens: float | None
    losses: dict[str, SetLoss]  # by held-out set


def summarize(
    results: Sequence[Result], entries: Sequence[Entry], num_tokens: Mapping[str, Sequence[int]]
) -> list[Line]:
    """A line for each model that was measured; ``num_tokens`` are those of the held-out rows."""
    measured = [result for result in results if result.nll]
    baselines = {entry.name: entry.baseline.name for entry in entries if entry != entry.baseline}
    names = [BASE, EXPERIENCED, *(entry.name for entry in entries)]
    tokens = {name: np.array(counts) for name, counts in num_tokens.items()}
    found = {name: [result for result in measured if result.name == name] for name in names}
    return [
        _summarize(found[name], found.get(baselines.get(name, ""), []), tokens)
        for name in names
        if found[name]
    ]


def _summarize(
    of_model: Sequence[Result], of_baseline: Sequence[Result], num_tokens: Mapping[str, Counts]
) -> Line:
    first = of_model[0]
    seeds = [result.seed for result in of_model]
    both = [result.seed for result in of_baseline if result.seed in seeds]
    losses = {}
    for name, tokens in num_tokens.items():
        by_seed = mean_loss(_nll(of_model, name), tokens).tolist()
        difference = None
        if both:
            one, other = (_nll(_of_seeds(side, both), name) for side in (of_model, of_baseline))
            difference = compare(one, other, tokens)
        losses[name] = SetLoss(by_seed, difference)
    return Line(
        first.name,
        [seed for seed in seeds if seed is not None],
        _mean(result.num_rows for result in of_model),
        _mean(result.num_answer_tokens for result in of_model),
        losses,
    )


def _of_seeds(results: Iterable[Result], seeds: Sequence[int | None]) -> list[Result]:
    return [result for result in results if result.seed in seeds]


def _nll(results: Sequence[Result], name: str) -> Floats:
    return np.array([result.nll[name] for result in results])


def _mean(counts: Iterable[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Overlap:
    """How many rows two choices of a seed have in common."""

    seed: int
    strategy: str
    num_rows: int  # of each
    num_shared: int
    jaccard: float


def find_overlaps(results: Sequence[Result], entries: Sequence[Entry]) -> list[Overlap]:
    """The overlap of each choice by scores of the base model with its twin."""
    held = {(result.name, result.seed): result for result in results if result.rows}
    found = []
    for entry in entries:
        twin = Entry(entry.strategy, entry.budget).name
        for (name, seed), result in held.items():
            if entry.by_base and name == entry.name and seed is not None and (twin, seed) in held:
                one, other = (set(decode_rows(r.rows)) for r in (result, held[twin, seed]))
                shared = len(one & other)
                jaccard = shared / len(one | other)
                found.append(Overlap(seed, entry.strategy, len(one), shared, jaccard))
    return found


def frame_rows(results: Sequence[Result], num_tokens: Mapping[str, Sequence[int]]) -> pl.DataFrame:
    """A line for each held-out row under each model, with its summed loss in nats."""
    schema = {
        "model": pl.String,
        "seed": pl.Int64,
        "set": pl.String,
        "row": pl.Int64,
        "num_answer_tokens": pl.Int64,
        "nll": pl.Float64,
    }
    lines: list[tuple[Any, ...]] = [
        (result.name, result.seed, name, row, tokens, nll)
        for result in results
        for name, of_rows in result.nll.items()
        for row, (tokens, nll) in enumerate(zip(num_tokens[name], of_rows, strict=True))
    ]
    return pl.DataFrame(lines, schema=schema, orient="row")
