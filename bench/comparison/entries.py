"""What is compared: strategies, each by a budget, and the settings of each."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from cherry_vllm.cli.words import read_words
from cherry_vllm.config import Config, SampleConfig, choice_of, compose
from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat, Sampling
from cherry_vllm.schema import SCORES
from cherry_vllm.selection.columns import CLUSTER
from cherry_vllm.selection.expressions import Expressions

RANDOM = "random"
BASE, EXPERIENCED = "base", "pre-experienced"  # models that no choice made
# Settings that this command sets, and what to give instead.
OURS = {
    "run_dir": "--run-dir",
    "scores_dir": "--run-dir",
    "seed": "--seeds",
    "select": "--strategies",
    "select.fraction": "--fraction",
    "select.count": "--fraction",
    "select.num_tokens": "--tokens-of",
    "select.output": "--run-dir",
}


class Budget(StrEnum):
    """In what choices are equal."""

    ROWS = "rows"
    TOKENS = "tokens"  # of the answers


@dataclass(frozen=True)
class Entry:
    """A strategy with a budget; ``by_base`` if scores of the base model decide."""

    strategy: str
    budget: Budget
    by_base: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        budget = " by tokens" if self.budget is Budget.TOKENS else ""
        return f"{self.strategy}{budget}{' without experience' if self.by_base else ''}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.name.replace(" ", "-")

    @property
    def baseline(self) -> "Entry":
        """Random rows of the same budget."""
        return Entry(RANDOM, self.budget)


def plan(
    strategies: Sequence[str], budgets: Sequence[Budget], without_experience: Iterable[str]
) -> list[Entry]:
    """The entries, random rows of each budget first.

    A strategy may name its budget, as in ``longest:tokens``; others have all the ``budgets``.

    Raises:
        UserError: it names another budget, or its name is that of another model.
    """
    entries = []
    for text in strategies:
        name, _, budget = text.partition(":")
        if budget and budget not in list(Budget):
            raise UserError(f"--strategies {text}: give {name}:rows or {name}:tokens")
        entries += [Entry(name, Budget(each)) for each in ([budget] if budget else budgets)]
    entries += [Entry(name, Budget.ROWS, by_base=True) for name in without_experience]
    entries = list(dict.fromkeys([*(entry.baseline for entry in entries), *entries]))
    taken = {BASE, EXPERIENCED}
    for entry in entries:
        if entry.folder in taken:
            raise UserError(
                f"--strategies {entry.strategy}: another model is called {entry.folder}; give the "
                "strategy's file another name"
            )
        taken.add(entry.folder)
    return entries


@dataclass(frozen=True)
class Settings:
    """The settings of the pipeline that all entries share."""

    words: Sequence[str]  # as on the command line
    run_dir: Path
    date: str | None = None  # of the prompt

    def check(self) -> None:
        """Raises a UserError for a setting that the command line's own options decide."""
        for word in self.words:
            key = word.partition("=")[0].lstrip("+~")
            if key in OURS:
                raise UserError(f"{word}: give {OURS[key]} instead")

    def compose(self, *more: str, seed: int = 0) -> Config:
        """The configuration of ``words`` and ``more``."""
        words = read_words([*self.words, *more], is_sweep=False)
        config = compose(*words, f"seed={seed}")
        config.run_dir = config.scores_dir = str(self.run_dir)
        config.prompt.date = self.date or config.prompt.date
        return config

    def of_other(self, file: Path) -> Config:
        """The same for data of another kind, to which settings of the data do not apply."""
        words = [word for word in self.words if not re.match(r"\+*data[.=]", word)]
        return replace(self, words=words).of_pool(file)

    def of_pool(self, pool: Path, *more: str, seed: int = 0) -> Config:
        """The same for the rows that were chosen from, as JSON Lines."""
        config = self.compose(*more, seed=seed)
        config.data = replace(
            config.data,
            path=str(pool),
            split=None,
            config=None,
            format=DataFormat.auto,
            field=None,
            encoding=None,
            delimiter=None,
            max_rows=None,
        )
        return config

    def of_entry(self, entry: Entry, pool: Path, *, seed: int, size: int) -> Config:
        """The same for one entry, whose choice has ``size`` rows or answer tokens."""
        config = self.of_pool(pool, f"select={entry.strategy}", seed=seed)
        if entry.by_base:
            config.sample = SampleConfig(strategy=Sampling.none, count=0)
        is_rows = entry.budget is Budget.ROWS
        config.select = replace(
            config.select,
            fraction=None,
            count=size if is_rows else None,
            num_tokens=None if is_rows else size,
            num_examples=0,
        )
        return config


def needs_embeddings(config: Config) -> bool:
    """Whether the choice depends on embeddings."""
    choice = choice_of(config)
    named = Expressions(choice, [*SCORES, CLUSTER]).columns
    return choice.diversify is not None or CLUSTER in named
