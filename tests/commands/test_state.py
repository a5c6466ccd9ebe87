"""A run folder through any order of commands, kills, damage and swaps, held against a plain model.

The engine is fake, the rest is real: sources, spans, shards, locks, aggregation, selection. What is
checked after every step: scores are those of one input under one set of weights and settings; a
selection holds the rows that the scores it names rank first, to the type and the digit; what was
selected earlier is still there; a user's file is never touched.
"""

import copy
import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

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

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.config import Config
from cherry_vllm.engines import checkpoint as checkpoints
from cherry_vllm.errors import UserError
from cherry_vllm.selection.outputs import COMMAND
from cherry_vllm.store.files import read_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import MADE_BY, mark_path, marked_file, read_mark
from cherry_vllm.workers.work import Piece
from tests.commands.disk import Killed, at_opening, freezing_after
from tests.commands.plain_model import (
    NUM_FILES,
    NUM_ROWS,
    NUM_VERSIONS,
    Chosen,
    Record,
    State,
    choose,
    expected_ifd,
    read_records,
    records,
    same,
    template,
    wizardlm,
)
from tests.fakes import InlineExecutor, install, write_checkpoint

NUM_WEIGHTS, NUM_SHARDS = 3, 3
FOLDER, FILES = "cherry", ("cherry.json", "cherry.jsonl", "cherry.parquet", "other.json")
INPUT = "data-0.jsonl"
FORBIDDEN = (INPUT, "run/scores.parquet", "run/score.json", "run/rows", "run/logprobs")

CHOSEN = st.builds(
    Chosen,
    file=st.integers(0, NUM_FILES - 1),
    max_length=st.sampled_from([80, 128]),
    with_wizardlm=st.booleans(),
    with_code=st.booleans(),
)
EITHER = st.integers(0, 1)  # of the settings or outputs of an example
DAMAGES = st.sampled_from(["flip", "cut", "delete"])
# Changes of a selection to the disk; those around the swap of a folder come more often.
SELECT_CHANGES = st.sampled_from([*range(25), *3 * [13, 14, 15, 16, 17]])


class RunFolder(RuleBasedStateMachine):
    """What a user and bad luck may do to one run folder."""

    @initialize(
        is_scored=st.booleans(),
        chosen=st.lists(CHOSEN, min_size=2, max_size=2),
        file=st.sampled_from(FILES),
    )
    def begin(self, *, is_scored: bool, chosen: list[Chosen], file: str) -> None:
        self.chosen, self.outputs = chosen, (FOLDER, file)  # few, so that commands meet
        self.place = Path(tempfile.mkdtemp(prefix="state"))
        self.patch = pytest.MonkeyPatch()
        self.executor = install(self.patch, InlineExecutor(on_piece=self._meet_piece))
        self._speed_up()
        self.model, self.run_dir = self.place / "model", self.place / "run"
        self.data = [file * NUM_VERSIONS for file in range(NUM_FILES)]
        self.begun: set[int] = set()  # the data of runs that began
        self.possible: set[State] = set()  # what scores.parquet may be of
        self.is_whole = False  # whether there are scores, and nothing was damaged since
        self.names: dict[str, State] = {}  # of scores, by their fingerprint
        self.users: dict[Path, bytes] = {}  # files that are not the program's
        self.selected: dict[Path, list[list[Record]]] = {}  # what each selection may hold
        self.exported: dict[str, str] = {}  # data files of folders by name, and their SHA-256
        self.running: list[State] = []
        self.on_piece: Callable[[int], None] = lambda _number: None
        self.release = 1
        self.makers: dict[tuple[State, int], set[str]] = defaultdict(set)  # releases, by shard
        self.put_weights(0)
        for number in self.data:
            self.put_data(number)
        if is_scored:
            self.score(0)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            shutil.rmtree(self.place)

    def _speed_up(self) -> None:
        load = cache(checkpoints.load_tokenizer)
        for room in ("spans", "compatibility", "snapshot"):
            self.patch.setattr(f"cherry_vllm.prompts.{room}.load_tokenizer", load)
        self.patch.setattr(
            "cherry_vllm.figures.figure.save_png", lambda path, *_figures: path.write_bytes(b"png")
        )
        self.patch.setattr(
            "cherry_vllm.store.shards.installed_versions", lambda: {"cherry-vllm": self._version}
        )

    # What the user changes between commands.

    @rule(number=st.integers(0, NUM_WEIGHTS - 1))
    def put_weights(self, number: int) -> None:
        """Other weights under the same path."""
        self.weights = number
        write_checkpoint(self.model, f"weights {number}".encode())

    @rule(number=st.integers(0, NUM_FILES * NUM_VERSIONS - 1))
    def put_data(self, number: int) -> None:
        """Other contents in an input file."""
        self.data[number // NUM_VERSIONS] = number
        file = self._data_file(number // NUM_VERSIONS)
        lines = "".join(f"{json.dumps(record)}\n" for record in records(number))
        with marked_file(file, {MADE_BY: COMMAND}) as path:  # as if selected from another run
            path.write_text(lines, encoding="utf-8")
        self.users[file] = file.read_bytes()

    @rule()
    def upgrade(self) -> None:
        """A newer release of the program."""
        self.release += 1

    @rule(output=EITHER)
    def put_own_file(self, output: int) -> None:
        """The user's own file where a selection would go."""
        path = self._output(output)
        if not path.exists():
            self._write_own(path if path.suffix else path / "raw.jsonl", b"mine")

    @precondition(lambda self: self.selected)
    @rule(number=EITHER)
    def edit_selection(self, number: int) -> None:
        """The user adds a line to a selection, or a file to its folder."""
        output = list(self.selected)[number % len(self.selected)]
        del self.selected[output]
        if output.is_dir():
            self._write_own(output / "notes.txt", b"mine")
        else:
            self._write_own(output, output.read_bytes() + b"mine")

    def _write_own(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.users[path] = content

    @precondition(lambda self: self.possible)
    @rule(place=st.integers(0, 99), kind=DAMAGES)
    def damage(self, place: int, kind: str) -> None:
        """A flipped bit, a cut or a lost file anywhere in the run folder."""
        files = sorted(
            path
            for path in self.run_dir.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        if files:
            self._damage(files[place % len(files)], kind)

    @precondition(lambda self: self.possible)
    @rule(output=EITHER, count=st.integers(1, 4), place=st.integers(0, 99), kind=DAMAGES)
    def select_from_damaged_rows(self, output: int, count: int, place: int, kind: str) -> None:
        """The records of a selection are those that were read, or it is refused."""
        shards = sorted(self.run_dir.glob("rows/*/part-*.parquet"))
        if shards:
            self._damage(shards[place % len(shards)], kind)
            self.select(output, count)

    def _damage(self, path: Path, kind: str) -> None:
        self.is_whole = False
        content = path.read_bytes()
        middle = len(content) // 2
        if kind == "delete" or not content:
            path.unlink()
        elif kind == "cut":
            path.write_bytes(content[:middle])
        else:
            flipped = bytes([content[middle] ^ 1])
            path.write_bytes(content[:middle] + flipped + content[middle + 1 :])

    # Commands.

    @rule(chosen=EITHER)
    def score(self, chosen: int) -> None:
        """A run that nothing disturbs ends with the right scores."""
        state = self._state(chosen)
        try:
            self._score(state)
        except UserError:
            if self._may_be_refused(state):
                return
            raise
        self._end_with(state)
        (name,) = (name for name, named in self.names.items() if named == state)
        for folder in (self.run_dir, self.run_dir / "logprobs" / name):  # others keep theirs
            assert not [path for path in folder.glob(".*") if ".tmp" in path.name]

    @rule(chosen=EITHER, changes=st.integers(0, 72))
    def score_and_kill(self, chosen: int, changes: int) -> None:
        """`kill -9` after any change to the disk."""
        state = self._state(chosen)
        self.possible.add(state)
        try:
            with freezing_after(changes):
                self._score(state)
        except (Killed, UserError):
            return
        self._end_with(state)

    @rule(chosen=EITHER, index=st.integers(0, 2), count=st.sampled_from([2, 3]))
    def score_share(self, chosen: int, index: int, count: int) -> None:
        """One of several processes; the last to end leaves the scores."""
        state = self._state(chosen)
        self.possible.add(state)
        try:
            made = self._score(state, index=index % count, count=count)
        except UserError:
            assert self._may_be_refused(state)
            return
        if made.name == "scores.parquet":
            self._end_with(state)

    @rule(chosen=EITHER, other=st.integers(0, NUM_WEIGHTS - 1), piece=st.integers(0, 2))
    def score_while_weights_change(self, chosen: int, other: int, piece: int) -> None:
        """Weights replaced while a run goes on: its scores are of one set, or there are none."""
        state = self._state(chosen)

        def swap(number: int) -> None:
            if number == piece and other != state.weights:
                self.put_weights(other)

        self._score_meanwhile(state, swap)

    @rule(chosen=EITHER, other=EITHER, piece=st.integers(0, 2), count=st.integers(1, 3))
    def score_twice_at_once(self, chosen: int, other: int, piece: int, count: int) -> None:
        """A run in other shares while one goes on is refused."""
        rival = self._state(other)

        def begin_another(number: int) -> None:
            if number == piece:
                for others in {1, 2, 3} - ({count} if count > 1 else set()):
                    with pytest.raises(UserError, match="in use by"):
                        self._score(rival, count=others)

        self._score_meanwhile(self._state(chosen), begin_another, count=count)

    @precondition(lambda self: self.possible)
    @rule(chosen=EITHER, piece=st.integers(0, 2), output=EITHER)
    def select_while_scoring(self, chosen: int, piece: int, output: int) -> None:
        """A selection while a run goes on is one of the scores that were there."""

        def select_now(number: int) -> None:
            if number == piece:
                self.select(output, 2)

        self._score_meanwhile(self._state(chosen), select_now)

    @precondition(lambda self: self.possible)
    @rule(output=EITHER, count=st.integers(1, 4))
    def select(self, output: int, count: int) -> None:
        """A selection holds the rows that one state ranks first, or is refused."""
        path = self._output(output)
        try:
            self._select(path, count)
        except UserError:
            assert not self.is_whole or self._may_not_be_selected(path, count)
            return
        self._check_selection(path, count)

    @precondition(lambda self: self.possible)
    @rule(output=EITHER, count=st.integers(1, 4), changes=SELECT_CHANGES)
    def select_and_kill(self, output: int, count: int, changes: int) -> None:
        """`kill -9` in the middle of a selection, which leaves the old output or the new one."""
        path = self._output(output)
        if path in self.selected:
            self.selected[path] += [choose(state, count) for state in self.possible]
        try:
            with freezing_after(changes):
                self._select(path, count)
        except (Killed, UserError):
            return
        self._check_selection(path, count)

    @precondition(lambda self: self.possible)
    @rule(
        output=EITHER,
        count=st.integers(1, 4),
        opening=st.integers(0, 15),
        chosen=EITHER,
    )
    def select_while_scores_change(
        self, output: int, count: int, opening: int, chosen: int
    ) -> None:
        """A run that ends while `select` reads: the rows are of one state, which the mark names."""
        path, state = self._output(output), self._state(chosen)
        ended: list[State] = []

        def end_a_run() -> None:
            self.possible.add(state)
            self._score(state)
            ended.append(state)

        try:
            with at_opening(opening, end_a_run):
                self._select(path, count)
            is_selected = True
        except UserError:
            is_selected = False
        for each in ended:
            self._check_scores(each)
        if is_selected:
            self._check_selection(path, count)
        for each in ended:
            self._end_with(each)

    @precondition(lambda self: self.possible)
    @rule(name=st.sampled_from(FORBIDDEN))
    def select_onto_what_a_run_needs(self, name: str) -> None:
        """The input and a run's own files can't be an output."""
        output = self.place / name
        if name == INPUT and any(state.data != self.data[0] for state in self.possible):
            return  # not what was scored
        before = output.read_bytes() if output.is_file() else None
        with pytest.raises(UserError):
            self._select(output, 1)
        assert (output.read_bytes() if output.is_file() else None) == before

    # What must hold.

    @invariant()
    def users_files_stay(self) -> None:
        for path, content in getattr(self, "users", {}).items():
            assert path.read_bytes() == content, f"{path.name} was changed"

    @invariant()
    def selections_stay(self) -> None:
        for output, allowed in getattr(self, "selected", {}).items():
            found = read_records(output)
            assert any(same(found, each) for each in allowed), f"{output.name} was changed"
            assert read_mark(output), f"{output.name} is not what its mark says"

    def _state(self, chosen: int) -> State:
        settings = self.chosen[chosen]
        return State(self.data[settings.file], self.weights, *settings[1:])

    def _output(self, number: int) -> Path:
        return self.place / "out" / self.outputs[number]

    def _data_file(self, file: int) -> Path:
        return self.place / f"data-{file}.jsonl"

    @property
    def _version(self) -> str:
        return f"0.{self.release}.0"

    def _meet_piece(self, _slot: int, piece: Piece) -> None:
        self.makers[self.running[-1], piece.index].add(self._version)
        self.handed.append(piece.index)
        self.on_piece(len(self.handed) - 1)

    def _score_meanwhile(
        self, state: State, on_piece: Callable[[int], None], count: int = 1
    ) -> None:
        """Scores, while something is done before each piece, by its number."""
        self.possible.add(state)
        self.on_piece = on_piece
        try:
            made = self._score(state, count=count)
        except UserError:
            return
        finally:
            self.on_piece = lambda _number: None
        if made.name == "scores.parquet":
            self._end_with(state)

    def _score(self, state: State, *, index: int = 0, count: int = 1) -> Path:
        config = copy.deepcopy(template())
        config.run_dir = config.scores_dir = str(self.run_dir)
        config.data.path, config.model.path = str(self._data_file(state.file)), str(self.model)
        config.model.trust_remote_code = state.with_code
        config.max_length = state.max_length
        config.executor.recycle_shards = 1  # so that a worker loads the model for every shard
        if state.with_wizardlm:
            config.prompt = wizardlm()
        config.share.index, config.share.count = index, count
        may_be_refused = self._may_be_refused(state)
        self.running.append(state)
        self.handed: list[int] = []
        try:
            made = score(config, Job(self.run_dir, is_sweep=False)).artifact
        except (Killed, UserError) as ended:
            if isinstance(ended, Killed) or not may_be_refused or self.handed:
                self.begun.add(state.data)
            raise
        finally:
            self.running.pop()
        self.begun.add(state.data)
        for shard in self.handed:
            self.makers[state, shard] = {self._version}
        return made

    def _may_be_refused(self, state: State) -> bool:
        """Whether a run began when the input file held something else.

        Or whether damage left nothing that shows that the scores are not the user's.
        """
        return self._is_unsigned() or any(
            data != state.data and data // NUM_VERSIONS == state.file for data in self.begun
        )

    def _is_unsigned(self) -> bool:
        scores, manifest = self.run_dir / "scores.parquet", self.run_dir / "score.json"
        signs = []
        with suppress(OSError, ValueError):
            signs.append("fingerprint" in read_json(manifest))
        with suppress(OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            signs.append("manifest" in pl.read_parquet_metadata(scores))
        return not any(signs) and (scores.exists() or manifest.exists())

    def _end_with(self, state: State) -> None:
        """A run over all shards has ended."""
        self._check_scores(state)
        self.possible, self.is_whole = {state}, True

    def _check_scores(self, state: State) -> None:
        path = self.run_dir / "scores.parquet"
        found = pl.read_parquet(path, glob=False)
        assert found["row"].to_list() == list(range(NUM_ROWS))
        expected = expected_ifd(state)
        assert [ifd is None for ifd in found["ifd"]] == [ifd is None for ifd in expected]
        assert found["ifd"].drop_nulls().to_list() == pytest.approx(
            [ifd for ifd in expected if ifd is not None], rel=1e-5
        )
        manifest = json.loads(pl.read_parquet_metadata(path)["manifest"])
        assert self.names.setdefault(manifest["fingerprint"], state) == state
        stated = set(re.findall(r"0\.\d+\.0", manifest["score"]["versions"]["cherry-vllm"]))
        for shard in range(NUM_SHARDS):
            assert stated & self.makers[state, shard], f"shard {shard} is of another version"

    def _select(self, output: Path, count: int) -> None:
        select(self._select_config(output, count), Job(self.place, is_sweep=False))

    def _select_config(self, output: Path, count: int) -> Config:
        config = copy.deepcopy(template())
        config.run_dir = config.scores_dir = str(self.run_dir)
        config.select.fraction, config.select.count = None, count
        config.select.output, config.select.num_examples = str(output), 0
        return config

    def _may_not_be_selected(self, output: Path, count: int) -> bool:
        """Whether the user's own file is there, or the rows are too few or do not fit."""
        choices = [choose(state, count) for state in self.possible]
        has_columns = output.suffix == ".parquet"
        return (
            any(path.is_relative_to(output) for path in self.users)
            or any(len(chosen) < count for chosen in choices)
            or (has_columns and any(_mixes_types(chosen) for chosen in choices))
        )

    def _check_selection(self, output: Path, count: int) -> None:
        found, mark = read_records(output), read_mark(output)
        assert mark, f"{output.name} is not what its mark says"
        named = self.names.get(mark["scores"])
        assert named is None or named in self.possible
        of_these = [named] if named else self.possible
        assert any(same(found, choose(state, count)) for state in of_these)
        self.selected[output] = [found]
        if output.is_dir():
            (file,) = (output / "data").iterdir()
            # The cache of `datasets` knows a data set by the names of its files.
            assert self.exported.setdefault(file.name, file_sha256(file)) == file_sha256(file)
        for target in (output, mark_path(output)):  # what is left of another stays until its turn
            left = re.compile(rf"\.{re.escape(target.stem)}\.[^.]+\.(tmp|old){target.suffix}")
            assert not [path for path in output.parent.iterdir() if left.fullmatch(path.name)]


def _mixes_types(chosen: list[Record]) -> bool:
    return len({type(record["note"]) for record in chosen}) > 1


COMMON = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to shrink takes minutes, and 50 steps can be read
    suppress_health_check=list(HealthCheck),
    stateful_step_count=50,
)
run_orders = partial(run_state_machine_as_test, RunFolder)


@pytest.mark.slow
def test_any_order_of_commands_kills_and_damage() -> None:
    run_orders(settings=settings(COMMON, max_examples=10, derandomize=True))


@pytest.mark.exhaustive
def test_three_hundred_orders_of_commands() -> None:
    run_orders(settings=settings(COMMON, max_examples=300))
