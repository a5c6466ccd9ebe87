"""Chooses, trains and measures, seed by seed; what is done is kept, and found again."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from bench.comparison import stages
from bench.comparison.clock import MEASURE, SCORE, TRAIN, Clock, show_time
from bench.comparison.entries import BASE, EXPERIENCED, Budget, Entry, Settings
from bench.comparison.results import Result
from bench.comparison.rows import RowSet
from cherry_vllm.cli.launch import describe_failure
from cherry_vllm.commands.job import Outcome
from cherry_vllm.commands.pipeline import to_json
from cherry_vllm.commands.sample import has_experience
from cherry_vllm.config import Config
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.selection.chosen_rows import ROWS
from cherry_vllm.selection.columns import EMBEDDINGS, RATING
from cherry_vllm.store.files import atomic_path
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.training.tuned_model import TunedModel

# Groups of settings that decide a model; the others say how and where it is made.
TRAINING = ("prompt", "model", "train")
SCORING = (*TRAINING, "refusals", "engine", "score", "sample", "pre_experience")
CHOOSING = (*SCORING, "select")
POOL, RESULT = "pool.jsonl", "result.json"
BY_TOKENS_GUESS = 3  # times the tokens of average rows, while a choice is not known


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and on what."""

    settings: Settings
    entries: Sequence[Entry]
    seeds: Sequence[int]
    pool: RowSet
    sets: Sequence[RowSet]  # held out
    base: Checkpoint
    count: int  # rows of a choice by rows
    tokens_of: str | int  # the strategy whose choice by rows sets the answer tokens, or a number
    keep_models: bool

    @property
    def num_tokens(self) -> dict[str, list[int]]:
        """The answer tokens of each held-out row, by set."""
        return {rows.name: rows.num_answer_tokens for rows in self.sets}

    @cached_property
    def fingerprint(self) -> str:
        """Names the base model and all rows."""
        records = [rows.records for rows in (self.pool, *self.sets)]
        spans = [rows.spans for rows in self.sets]
        return fingerprint({"records": records, "spans": spans, "base": self.base.fingerprint})


class PoolError(UserError):
    """The pool cannot be scored, so that nothing can be chosen."""


class Run:
    """Makes the results of a comparison in its folder."""

    def __init__(self, comparison: Comparison, folder: Path, say: Callable[[str], None]) -> None:
        """``say`` is called with a line for whatever is done."""
        self._of, self._folder, self._say = comparison, folder, say
        self._clock = Clock(folder / "clock.json")
        self._pool = folder / POOL
        self._config = comparison.settings.compose()
        self._results: dict[tuple[str, int | None], Result] = {}
        self._scored: dict[tuple[int, bool], tuple[Outcome, TunedModel | None]] = {}
        self.failures: dict[tuple[str, int], str] = {}
        with atomic_path(self._pool) as path:
            path.write_text("".join(f"{text}\n" for text in comparison.pool.records), "utf-8")

    @property
    def results(self) -> list[Result]:
        """What is known so far."""
        return list(self._results.values())

    def measure_base(self) -> None:
        """Measures the base model, from whose speed the time is estimated; says how long."""
        config = self._of.settings.of_pool(self._pool)
        result = self._open(BASE, None, config, TRAINING)
        if not result.nll:
            self._measure(result, self._of.base)
        number = len(self._of.seeds) * len(self._of.entries)
        self._say(f"{number} choices, about {show_time(self._left())} left")

    def run_seed(self, seed: int) -> None:
        """Scores the pool and chooses for all entries, then trains and measures their models.

        Raises:
            UserError: the pool cannot be scored.
        """
        config = self._of.settings.of_pool(self._pool, seed=seed)
        if has_experience(config):
            result = self._open(EXPERIENCED, seed, config, SCORING)
            if not result.nll:
                _, tuned = self._score(config, seed)
                assert tuned
                self._measure(result, tuned.model)
        for work in (self._choose, self._train):
            for entry in self._of.entries:
                self._try(work, entry, seed)

    def _try(self, work: Callable[[Entry, int], Result], entry: Entry, seed: int) -> None:
        """A failure ends nothing but this entry."""
        if (entry.name, seed) in self.failures:
            return
        try:
            work(entry, seed)
        except PoolError:
            raise
        except Exception as error:
            failure = describe_failure(error)
            if failure.trace:  # a mistake of ours
                with self._file(entry.name, seed).with_name(stages.LOG).open("a") as log:
                    log.write(failure.trace)
            self.failures[entry.name, seed] = failure.message
            self._say(f"seed {seed}, {entry.name}: failed: {failure.message}")

    def _score(
        self, config: Config, seed: int, *, by_base: bool = False
    ) -> tuple[Outcome, TunedModel | None]:
        if (seed, by_base) not in self._scored:
            self._say(f"seed {seed}: scoring the pool{' with the base model' if by_base else ''}")
            experienced = self._file(EXPERIENCED, seed)
            folder = experienced.with_name(BASE) if by_base else experienced.parent
            started, is_new = time.monotonic(), not experienced.exists()
            try:
                scored, tuned = stages.score(config, folder, self._of.base)
            except UserError as error:
                raise PoolError(str(error)) from None
            if is_new and tuned:
                seconds = time.monotonic() - started
                seconds -= self._time_training(tuned, config.pre_experience.num_epochs)
                self._clock.record(SCORE, 3 * self._of.pool.num_tokens, max(seconds, 0))
            self._scored[seed, by_base] = scored, tuned
        return self._scored[seed, by_base]

    def _choose(self, entry: Entry, seed: int) -> Result:
        size = self._of.count if entry.budget is Budget.ROWS else self._find_num_tokens(seed)
        config = self._of.settings.of_entry(entry, self._pool, seed=seed, size=size)
        result = self._open(entry.name, seed, config, CHOOSING)
        if not result.rows:
            scored, _ = self._score(config, seed, by_base=entry.by_base)
            mark = stages.choose(config, self._file(entry.name, seed).parent, scored)
            result.rows = mark[ROWS]
            result.num_rows = mark["num_selected"]
            result.num_answer_tokens = mark["num_answer_tokens"]
            paths = {RATING: config.select.ratings}
            result.tables = {
                paths.get(name, name): held
                for name, held in mark["tables"].items()
                if name != EMBEDDINGS  # which `embed` found by all that decides them
            }
            result.write(self._file(entry.name, seed))
            counts = f"{result.num_rows:,} rows, {result.num_answer_tokens:,} answer tokens"
            self._say(f"seed {seed}, {entry.name}: {counts}")
        return result

    def _find_num_tokens(self, seed: int) -> int:
        """The answer tokens of a choice by tokens."""
        asked = self._of.tokens_of
        if isinstance(asked, int):
            return asked
        found = self._choose(Entry(asked, Budget.ROWS), seed).num_answer_tokens
        assert found
        return found

    def _train(self, entry: Entry, seed: int) -> Result:
        result = self._results[entry.name, seed]
        if result.nll:
            return result
        for other in self.results:  # of other budgets, or of strategies that agree
            if other.seed == seed and other.rows == result.rows and other.nll:
                result.nll = other.nll
                self._keep(result)
                return result
        config = self._of.settings.of_pool(self._pool, seed=seed)
        file = self._file(entry.name, seed).with_name(config.select.output)
        tuned = stages.train(config, file, self._of.base)
        self._time_training(tuned, config.train.num_epochs)
        self._measure(result, tuned.model)
        if not self._of.keep_models:
            shutil.rmtree(tuned.artifact)
        return result

    def _measure(self, result: Result, model: Checkpoint) -> None:
        remote, started = self._config.model.trust_remote_code, time.monotonic()
        result.nll = stages.measure(model, self._of.sets, trust_remote_code=remote)
        tokens = sum(rows.num_tokens for rows in self._of.sets)
        self._clock.record(MEASURE, tokens, time.monotonic() - started)
        self._keep(result)

    def _keep(self, result: Result) -> None:
        result.write(self._file(result.name, result.seed))
        losses = "  ".join(
            f"{name} {sum(nll) / sum(self._of.num_tokens[name]):.4f}"
            for name, nll in result.nll.items()
        )
        seed = "" if result.seed is None else f"seed {result.seed}, "
        self._say(f"{seed}{result.name}: {losses}; about {show_time(self._left())} left")

    def _open(self, name: str, seed: int | None, config: Config, groups: Sequence[str]) -> Result:
        """The result as far as it is known."""
        settings = {group: to_json(asdict(getattr(config, group))) for group in groups}
        more = {"max_length": config.max_length, "columns": asdict(config.data.columns)}
        decided_by = fingerprint({"of": self._of.fingerprint, "seed": seed, **settings, **more})
        found = self._known(name, seed)
        if found is None or found.decided_by != decided_by or not found.is_current:
            found = Result(name, decided_by, seed)
        self._results[name, seed] = found
        return found

    def _file(self, name: str, seed: int | None) -> Path:
        folder = self._folder if seed is None else self._folder / f"seed-{seed}"
        return folder / name.replace(" ", "-") / RESULT

    def _time_training(self, tuned: TunedModel, num_epochs: int) -> float:
        seconds = float(tuned.facts["seconds"])
        self._clock.record(TRAIN, tuned.facts["num_tokens"] * num_epochs, seconds)
        return seconds

    def _left(self) -> float | None:
        """The seconds that the rest will take."""
        config, pool = self._config, self._of.pool
        row_tokens = pool.num_tokens / len(pool.records)
        prompt_tokens = row_tokens - sum(pool.num_answer_tokens) / len(pool.records)
        held_out = sum(rows.num_tokens for rows in self._of.sets)
        work = Counter[str]()
        for seed in self._of.seeds:
            scorer = self._known(EXPERIENCED, seed)
            if has_experience(config) and not (scorer and scorer.nll):
                work[SCORE] += 3 * pool.num_tokens  # both passes, and the embeddings
                work[TRAIN] += int(config.sample.count * row_tokens)
                work[MEASURE] += held_out
            for entry in self._of.entries:
                result = self._known(entry.name, seed)
                if (result and result.nll) or (entry.name, seed) in self.failures:
                    continue
                tokens = self._of.count * row_tokens
                if result and result.num_rows and result.num_answer_tokens:
                    tokens = result.num_answer_tokens + result.num_rows * prompt_tokens
                elif entry.budget is Budget.TOKENS:
                    tokens *= BY_TOKENS_GUESS
                work[TRAIN] += int(config.train.num_epochs * tokens)
                work[MEASURE] += held_out
        return self._clock.estimate(work)

    def _known(self, name: str, seed: int | None) -> Result | None:
        """What is known of a model, or was when the run was interrupted."""
        return self._results.get((name, seed)) or Result.read(self._file(name, seed))
