"""Checks everything that can be wrong, and reads the rows, before any work."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.comparison.entries import Budget, Entry, Settings, plan
from bench.comparison.rows import RowReader, RowSet
from bench.comparison.run import Comparison
from cherry_vllm.commands.inputs import find_input, find_model, find_prompt
from cherry_vllm.commands.pipeline import check_settings
from cherry_vllm.commands.sample import has_experience
from cherry_vllm.config import Config, choice_of
from cherry_vllm.errors import DamagedFileError, UserError
from cherry_vllm.prompts.spans import SpanBuilder, open_span_builder
from cherry_vllm.selection.ranking import take_share
from cherry_vllm.store.files import read_json, write_json

HELD_OUT, OTHER = "held-out", "other"
SETTINGS = "settings.json"  # of the folder: what it compares


def prepare(arguments: argparse.Namespace) -> Comparison:
    """What the arguments ask for.

    Raises:
        UserError: an option, a setting, a file or the model cannot be used, or the folder holds
            another comparison.
    """
    folder = arguments.run_dir
    settings = Settings(arguments.settings, folder / "run")
    entries = plan(
        arguments.strategies,
        [Budget(budget) for budget in arguments.budgets],
        arguments.without_experience or [],
    )
    config = check(settings, entries, arguments)
    base = find_model(config)
    known = read_known(folder)
    config.prompt.date = known.get("date") or config.prompt.date
    prompt = find_prompt(config, base)
    builder = open_span_builder(
        base,
        prompt=prompt,
        max_length=config.max_length,
        trust_remote_code=config.model.trust_remote_code,
    )
    pool, sets = read_sets(settings, arguments, builder)
    comparison = Comparison(
        settings=replace(settings, date=prompt.date),
        entries=entries,
        seeds=list(dict.fromkeys(arguments.seeds)),
        pool=pool,
        sets=sets,
        base=base,
        count=take_share(arguments.rows, arguments.fraction),
        tokens_of=arguments.tokens_of,
        keep_models=arguments.keep_models,
    )
    if known.get("fingerprint", comparison.fingerprint) != comparison.fingerprint:
        raise UserError(
            f"--run-dir {folder}: compares other rows, or another model; choose another folder"
        )
    facts = {"fingerprint": comparison.fingerprint, "date": prompt.date}
    write_json(folder / SETTINGS, facts | {"settings": arguments.settings})
    return comparison


def read_known(folder: Path) -> dict[str, Any]:
    """What an earlier call left in the folder about itself; nothing if the folder is new.

    Raises:
        UserError: the folder holds other files, which the results could replace.
    """
    known: dict[str, Any] = {}
    with suppress(OSError, DamagedFileError):
        known = read_json(folder / SETTINGS)
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and "fingerprint" not in known:
        raise UserError(
            f"--run-dir {folder}: holds {min(others)}, not from a comparison; choose a new one"
        )
    return known


def check(settings: Settings, entries: Sequence[Entry], arguments: argparse.Namespace) -> Config:
    """The configuration, once it and those of all entries have been checked.

    Raises:
        UserError: one of them cannot work.
    """
    settings.check()
    config = settings.compose()
    check_settings(config)
    find_input(config)
    if arguments.without_experience and not has_experience(config):
        raise UserError("--without-experience: sample=none has none; leave one of them out")
    by_tokens = any(entry.budget is Budget.TOKENS for entry in entries)
    if by_tokens and isinstance(arguments.tokens_of, str):
        entries = [*entries, Entry(arguments.tokens_of, Budget.ROWS)]
    for entry in entries:
        choice_of(settings.of_entry(entry, Path("pool.jsonl"), seed=0, size=1))
    if not take_share(arguments.rows, arguments.fraction):
        raise UserError(
            f"--fraction {arguments.fraction:g}: chooses none of --rows {arguments.rows}; give more"
        )
    return config


def read_sets(
    settings: Settings, arguments: argparse.Namespace, builder: SpanBuilder
) -> tuple[RowSet, list[RowSet]]:
    """The pool and the held-out sets."""
    count = arguments.held_out
    reader = RowReader(settings.compose(), builder)
    pool = reader.take("pool", arguments.rows, "--rows")
    sets = [reader.take(HELD_OUT, count, "--held-out", pool)]
    if arguments.other:
        other = RowReader(settings.of_other(Path(arguments.other)), builder)
        sets.append(other.take(OTHER, count, "--held-out", pool))
    return pool, sets
