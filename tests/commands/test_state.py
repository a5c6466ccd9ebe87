"""A run folder through any order of commands, kills, damage and swaps, held against a plain model.

The engine is fake, the rest is real: sources, spans, shards, locks, aggregation, selection. What is
checked after every step: scores are those of one input under one set of weights and settings, a
selection holds the rows that these scores rank first, and a user's file is never touched.
"""

import copy
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cherry_vllm.commands.inputs import Job
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.config import Config, compose
from cherry_vllm.engines import Span
from cherry_vllm.engines import checkpoint as checkpoints
from cherry_vllm.engines.checkpoint import find_checkpoint
from cherry_vllm.errors import UserError
from tests.fakes import FakeEngine, InlineExecutor, install, write_checkpoint

NUM_ROWS, SHARD_ROWS, NUM_DATA, NUM_WEIGHTS = 11, 4, 3, 3
MARKER = "### Response:"
OUTPUTS = ("cherry.json", "cherry.jsonl", "cherry", "other.json")
FORBIDDEN = ("data.jsonl", "run/scores.parquet", "run/score.json", "run/rows", "run/logprobs")


class State(NamedTuple):
    """All that decides scores."""

    data: int
    weights: int
    max_length: int
    with_wizardlm: bool


class Killed(BaseException):
    """Stands for `kill -9`: from here on the disk does not change."""


REMOTE = {"trust_remote_code": False}
STATES = st.tuples(st.sampled_from([80, 128]), st.booleans())


def records(data: int) -> list[dict[str, str]]:
    """Rows of one of the inputs; no two inputs share an answer."""
    words = ["one", "two", "three", "four", "five"]
    return [
        {
            "instruction": f"Say {words[row % 5]} of {row}.",
            "output": " ".join(
                words[(row * 3 + data * 7 + place) % 5] for place in range(3 + row * row)
            ),
            "id": f"{data}-{row}",
        }
        for row in range(NUM_ROWS)
    ]


@cache
def template() -> Config:
    return compose("prompt=alpaca", "engine=hf", f"shard_rows={SHARD_ROWS}", "seed=1")


@cache
def wizardlm() -> Any:
    return compose("prompt=wizardlm").prompt


@contextmanager
def freezing_after(changes: int) -> Iterator[None]:
    """Lets so many changes to the disk through; then raises, and lets no other one through.

    What ``finally`` would tidy up stays, as after a real `kill -9`.
    """
    left = changes

    def guard(function: Callable[..., Any], *, writes: Callable[..., bool]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            if writes(*arguments, **keywords):
                if left <= 0:
                    raise Killed
                left -= 1
            return function(*arguments, **keywords)

        return guarded

    def always(*_arguments: Any, **_keywords: Any) -> bool:
        return True

    def opens_to_write(_file: Any, mode: str = "r", *_rest: Any, **_keywords: Any) -> bool:
        return any(letter in mode for letter in "wax")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink"):
            patch.setattr(os, name, guard(getattr(os, name), writes=always))
        patch.setattr(io, "open", guard(io.open, writes=opens_to_write))
        yield


class RunFolder(RuleBasedStateMachine):
    """What a user and bad luck may do to one run folder."""

    @initialize(is_scored=st.booleans(), chosen=STATES)
    def begin(self, *, is_scored: bool, chosen: tuple[int, bool]) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="state"))
        self.patch = pytest.MonkeyPatch()
        self.executor = install(self.patch, InlineExecutor())
        self._speed_up()
        self.model, self.run_dir = self.place / "model", self.place / "run"
        self.data_file = self.place / "data.jsonl"
        self.data = self.weights = 0
        self.possible: set[State] = set()  # what scores.parquet may be of
        self.users: dict[Path, bytes] = {}  # files that are not the program's
        self.put_weights(0)
        self.put_data(0)
        if is_scored:
            self.score(chosen)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            shutil.rmtree(self.place)

    def _speed_up(self) -> None:
        load = cache(checkpoints.load_tokenizer)
        for room in ("spans", "fit"):
            self.patch.setattr(f"cherry_vllm.prompts.{room}.load_tokenizer", load)
        self.patch.setattr(
            "cherry_vllm.figures.figure.save_png", lambda path, *_figures: path.write_bytes(b"png")
        )

    # What the user changes between commands.

    @rule(number=st.integers(0, NUM_WEIGHTS - 1))
    def put_weights(self, number: int) -> None:
        """Other weights under the same path."""
        self.weights = number
        write_checkpoint(self.model, f"weights {number}".encode())

    @rule(number=st.integers(0, NUM_DATA - 1))
    def put_data(self, number: int) -> None:
        """Another input under the same path."""
        self.data = number
        lines = "".join(f"{json.dumps(record)}\n" for record in records(number))
        self.data_file.write_text(lines, encoding="utf-8")
        self.users[self.data_file] = self.data_file.read_bytes()

    @rule(name=st.sampled_from(OUTPUTS), edits=st.booleans())
    def put_own_file(self, name: str, *, edits: bool) -> None:
        """The user's own file where a selection would go, or an edit of what is there."""
        path = self.place / "out" / name
        if path.is_dir() and edits:
            path = path / "notes.txt"
        elif path.exists() and not edits:
            return
        elif not path.suffix:
            path = path / "raw.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b"mine")
        self.users[path] = path.read_bytes()

    @precondition(lambda self: self.possible)
    @rule(place=st.integers(0, 99), kind=st.sampled_from(["flip", "cut", "delete"]))
    def damage(self, place: int, kind: str) -> None:
        """A flipped bit, a cut or a lost file anywhere in the run folder."""
        files = sorted(
            path
            for path in self.run_dir.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        if not files:
            return
        path = files[place % len(files)]
        content = path.read_bytes()
        if kind == "delete" or not content:
            path.unlink()
        elif kind == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )

    # Commands.

    @rule(chosen=STATES)
    def score(self, chosen: tuple[int, bool]) -> None:
        """A run that nothing disturbs ends with the right scores."""
        state = State(self.data, self.weights, *chosen)
        try:
            self._score(state)
        except UserError:
            if self._is_refused(state):
                return
            raise
        self.possible = {state}
        self._check_scores(state)
        assert not [path for path in self.run_dir.rglob(".*") if ".tmp" in path.name]

    @rule(chosen=STATES, changes=st.integers(0, 60))
    def score_and_kill(self, chosen: tuple[int, bool], changes: int) -> None:
        """`kill -9` after any change to the disk."""
        state = State(self.data, self.weights, *chosen)
        self.possible.add(state)
        try:
            with freezing_after(changes):
                self._score(state)
        except (Killed, UserError):
            return
        self.possible = {state}
        self._check_scores(state)

    @rule(chosen=STATES, index=st.integers(0, 2), count=st.sampled_from([2, 3]))
    def score_share(self, chosen: tuple[int, bool], index: int, count: int) -> None:
        """One of several processes; the last to end leaves the scores."""
        state = State(self.data, self.weights, *chosen)
        self.possible.add(state)
        try:
            ended = self._score(state, index=index % count, count=count)
        except UserError:
            assert self._is_refused(state)
            return
        if ended.name == "scores.parquet":
            self.possible = {state}
            self._check_scores(state)

    @rule(chosen=STATES, other=st.integers(0, NUM_WEIGHTS - 1), piece=st.integers(0, 2))
    def score_while_weights_change(self, chosen: tuple[int, bool], other: int, piece: int) -> None:
        """Weights replaced while a run goes on: its scores are of one set, or there are none."""
        state = State(self.data, self.weights, *chosen)
        self.possible.add(state)
        met = 0

        def swap(_slot: int, _piece: object) -> None:
            nonlocal met
            if met == piece and other != state.weights:
                self.put_weights(other)
            met += 1

        self.executor.on_piece = swap
        try:
            self._score(state)
        except UserError:
            return
        finally:
            self.executor.on_piece = lambda _slot, _piece: None
        self.possible = {state}
        self._check_scores(state)

    @precondition(lambda self: self.possible)
    @rule(name=st.sampled_from(OUTPUTS), count=st.integers(1, 4))
    def select(self, name: str, count: int) -> None:
        """A selection holds the rows that one state ranks first, or is refused."""
        output = self.place / "out" / name
        try:
            select(self._select_config(output, count), Job(self.place, is_sweep=False))
        except UserError:
            return
        self._check_selection(output, count)

    @precondition(lambda self: self.possible)
    @rule(name=st.sampled_from(OUTPUTS), count=st.integers(1, 4), changes=st.integers(0, 12))
    def select_and_kill(self, name: str, count: int, changes: int) -> None:
        """`kill -9` in the middle of a selection, which leaves the old output or the new one."""
        output = self.place / "out" / name
        try:
            with freezing_after(changes):
                select(self._select_config(output, count), Job(self.place, is_sweep=False))
        except (Killed, UserError):
            return
        self._check_selection(output, count)

    @precondition(lambda self: self.possible)
    @rule(name=st.sampled_from(FORBIDDEN))
    def select_onto_what_a_run_needs(self, name: str) -> None:
        """The input and a run's own files can't be an output."""
        output = self.place / name
        before = output.read_bytes() if output.is_file() else None
        with pytest.raises(UserError):
            select(self._select_config(output, 1), Job(self.place, is_sweep=False))
        assert (output.read_bytes() if output.is_file() else None) == before

    # What must hold.

    @invariant()
    def users_files_stay(self) -> None:
        for path, content in getattr(self, "users", {}).items():
            assert path.read_bytes() == content, f"{path.name} was changed"

    def _score(self, state: State, *, index: int = 0, count: int = 1) -> Path:
        config = copy.deepcopy(template())
        config.run_dir = config.scores_dir = str(self.run_dir)
        config.data.path, config.model.path = str(self.data_file), str(self.model)
        config.max_length = state.max_length
        config.executor.recycle_shards = 1  # so that a worker loads the model for every shard
        if state.with_wizardlm:
            config.prompt = wizardlm()
        config.share.index, config.share.count = index, count
        return score(config, Job(self.run_dir, is_sweep=False)).artifact

    def _is_refused(self, state: State) -> bool:
        """Whether a run on ``state`` is to be refused: the input changed since a run began."""
        begun = {earlier.data for earlier in self.possible}
        return bool(begun - {state.data})

    def _select_config(self, output: Path, count: int) -> Config:
        config = copy.deepcopy(template())
        config.run_dir = config.scores_dir = str(self.run_dir)
        config.select.fraction, config.select.count = None, count
        config.select.output, config.select.num_examples = str(output), 0
        return config

    def _check_scores(self, state: State) -> None:
        found = pl.read_parquet(self.run_dir / "scores.parquet", glob=False)
        assert found["row"].to_list() == list(range(NUM_ROWS))
        expected = expected_ifd(state)
        assert [ifd is None for ifd in found["ifd"]] == [ifd is None for ifd in expected]
        assert found["ifd"].drop_nulls().to_list() == pytest.approx(
            [ifd for ifd in expected if ifd is not None], rel=1e-5
        )

    def _check_selection(self, output: Path, count: int) -> None:
        chosen = {tuple(sorted(ids)) for ids in self._possible_choices(count)}
        assert tuple(sorted(read_ids(output))) in chosen

    def _possible_choices(self, count: int) -> Iterator[list[str]]:
        for state in self.possible:
            ifd = expected_ifd(state)
            usable = [(-found, row) for row, found in enumerate(ifd) if found and found <= 1]
            best = [row for _, row in sorted(usable)[:count]]
            yield [f"{state.data}-{row}" for row in best]


def read_ids(output: Path) -> list[str]:
    """The ids of the records that a selection left."""
    if output.is_dir():
        (file,) = output.rglob("*.parquet")
        return pl.read_parquet(file, glob=False)["id"].to_list()
    text = output.read_text(encoding="utf-8")
    if output.suffix == ".json":
        return [record["id"] for record in json.loads(text)]
    return [json.loads(line)["id"] for line in text.splitlines()]


@cache
def expected_ifd(state: State) -> list[float | None]:
    """The scores of a state, row by row, from the definitions alone; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder), f"weights {state.weights}".encode())
        engine = FakeEngine(find_checkpoint(str(model)))
        tokenizer = checkpoints.load_tokenizer(model, **REMOTE)
    return [_expected_ifd(record, engine, tokenizer, state) for record in records(state.data)]


def _expected_ifd(
    record: dict[str, str], engine: FakeEngine, tokenizer: Any, state: State
) -> float | None:
    prompts = template().prompt if not state.with_wizardlm else wizardlm()
    prompt = prompts.without_input.format(instruction=record["instruction"])
    spans = []
    num_prompt_tokens = len(encode(tokenizer, prompt))
    room = state.max_length - num_prompt_tokens
    if room <= 0:
        return None
    for text, limit in (
        (prompt, state.max_length),
        (MARKER, room + len(encode(tokenizer, MARKER))),
    ):
        token_ids = encode(tokenizer, text + record["output"])[:limit]
        spans.append(Span(token_ids, len(encode(tokenizer, text))))
    conditioned, direct = engine.logprobs(spans, lambda _count: None)
    return float(conditioned.mean(dtype=float) / direct.mean(dtype=float))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids, without what a tokenizer adds."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


COMMON = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to shrink takes minutes, and 20 steps can be read
    suppress_health_check=list(HealthCheck),
    stateful_step_count=20,
)


@pytest.mark.slow
def test_any_order_of_commands_kills_and_damage() -> None:
    run_state_machine_as_test(
        RunFolder, settings=settings(COMMON, max_examples=20, derandomize=True)
    )


@pytest.mark.exhaustive
def test_three_hundred_orders_of_commands() -> None:
    run_state_machine_as_test(RunFolder, settings=settings(COMMON, max_examples=300))
