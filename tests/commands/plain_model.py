"""The plain model that the state machine is held against: what scores and selections must hold."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from cherry_vllm.config import Config, compose
from cherry_vllm.engines import Span
from cherry_vllm.engines import checkpoint as checkpoints
from cherry_vllm.engines.checkpoint import find_checkpoint
from tests.fakes import FakeEngine, write_checkpoint

NUM_ROWS, SHARD_ROWS = 11, 4
NUM_FILES, NUM_VERSIONS = 2, 2  # input files, and what each of them may hold
MARKER = "### Response:"

Record = dict[str, Any]


class Chosen(NamedTuple):
    """The settings of a run."""

    file: int
    max_length: int
    with_wizardlm: bool
    with_code: bool


class State(NamedTuple):
    """All that decides scores."""

    data: int  # one version of one file
    weights: int
    max_length: int
    with_wizardlm: bool
    with_code: bool

    @property
    def file(self) -> int:
        """The number of the input file."""
        return self.data // NUM_VERSIONS


def records(data: int) -> list[Record]:
    """The rows of an input; no two inputs share an answer, and one file mixes types."""
    words = ["one", "two", "three", "four", "five"]
    mixes = data // NUM_VERSIONS == 1
    return [
        {
            "instruction": f"Say {words[row % 5]} of {row}.",
            "output": " ".join(
                words[(row * 3 + data * 7 + place) % 5] for place in range(3 + row * row + data)
            ),
            "id": f"{data}-{row}",
            "note": 2**53 + 1 if mixes and row % 2 else "a note",
        }
        for row in range(NUM_ROWS)
    ]


def choose(state: State, count: int) -> list[Record]:
    """The rows that these scores rank first."""
    ifd = expected_ifd(state)
    usable = [(-found, row) for row, found in enumerate(ifd) if found and found <= 1]
    rows = records(state.data)
    return [rows[row] for _, row in sorted(usable)[:count]]


def same(found: Sequence[Record], expected: Sequence[Record]) -> bool:
    """Whether two lists hold the same records, to the type and the digit, in any order."""
    return _texts(found) == _texts(expected)


def _texts(found: Sequence[Record]) -> list[str]:
    return sorted(json.dumps(record, sort_keys=True) for record in found)


def read_records(output: Path) -> list[Record]:
    """The records that a selection left."""
    if output.is_dir():
        (output,) = (output / "data").iterdir()
    if output.suffix == ".parquet":
        return pl.read_parquet(output, glob=False).to_dicts()
    text = output.read_text(encoding="utf-8")
    if output.suffix == ".json":
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines()]


@cache
def template() -> Config:
    """The settings that all runs share."""
    return compose("prompt=alpaca", "engine=hf", f"shard_rows={SHARD_ROWS}", "seed=1")


@cache
def wizardlm() -> Any:
    """Another prompt than the template's."""
    return compose("prompt=wizardlm").prompt


@cache
def expected_ifd(state: State) -> list[float | None]:
    """The scores of a state, row by row, from the definitions alone; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder), f"weights {state.weights}".encode())
        engine = FakeEngine(find_checkpoint(str(model)), with_code=state.with_code)
        tokenizer = checkpoints.load_tokenizer(model, trust_remote_code=False)
    return [_expected_ifd(record, engine, tokenizer, state) for record in records(state.data)]


def _expected_ifd(record: Record, engine: FakeEngine, tokenizer: Any, state: State) -> float | None:
    prompts = template().prompt if not state.with_wizardlm else wizardlm()
    prompt = prompts.without_input.format(instruction=record["instruction"])
    room = state.max_length - len(_encode(tokenizer, prompt))
    if room <= 0:
        return None
    spans = []
    for text, limit in (
        (prompt, state.max_length),
        (MARKER, room + len(_encode(tokenizer, MARKER))),
    ):
        token_ids = _encode(tokenizer, text + record["output"])[:limit]
        spans.append(Span.from_start(token_ids, len(_encode(tokenizer, text))))
    conditioned, direct = engine.logprobs(spans, lambda _count: None)
    return float(conditioned.mean(dtype=float) / direct.mean(dtype=float))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
