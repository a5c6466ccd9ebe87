"""The Python functions, for notebooks: score rows, and select from the scores.

scores = cherry_vllm.score("alpaca.json", "path/to/model", "prompt=chat")
cherry = cherry_vllm.select(scores, fraction=0.1)
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cherry_vllm.cli.explain import explain
from cherry_vllm.cli.keys import list_groups
from cherry_vllm.cli.words import read_words
from cherry_vllm.commands.inputs import find_input, find_used_model
from cherry_vllm.commands.score import score_files
from cherry_vllm.config import Config, choice_of, compose
from cherry_vllm.errors import UserError
from cherry_vllm.schema import GAINS, SCORES
from cherry_vllm.selection.ranking import select_rows

Records = Iterable[Mapping[str, Any]]

# Settings that are arguments of :func:`score`.
ARGUMENTS = {
    "data.path": "data",
    "model.path": "model",
    "run_dir": "run_dir",
    "scores_dir": "run_dir",
}


def score(
    data: str | Path | pl.DataFrame | Records,
    model: str | Path,
    *settings: str,
    run_dir: str | Path | None = None,
) -> pl.DataFrame:
    """Scores rows by their Instruction-Following Difficulty (paper, section 2.2).

    ``data`` is a file, a glob or an ``hf://`` path, or the records themselves, also as a frame;
    ``model`` is a folder or a hub id. ``settings`` are those of the command line, such as
    "prompt=chat" or "engine=hf". A killed run resumes if it is called again with the same
    ``run_dir``; without a ``run_dir``, nothing is kept.

    Returns one line per row, in the order of the input, with the columns of
    :data:`schema.SCORES`: the scores in nats per token, and ``drop_reason``, which is null for a
    usable row.

    Raises:
        UserError: a setting, the data or the model cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _compose(settings, "give it as the argument {} of score()")
        config.data.path = _find_data(data, folder)
        config.model.path = str(model)
        config.run_dir = config.scores_dir = str(run_dir or folder / "run")
        place = Path(config.scores_dir)
        files = find_input(config)
        checkpoint = find_used_model(config, num_tokens=config.max_length + 1)
        scores = score_files(config, files, checkpoint, place, may_replace=True)
    if scores is None:
        raise RuntimeError("a run over all shards ended without scores")
    return scores.frame


def select(
    scores: pl.DataFrame,
    *settings: str,
    fraction: float | None = None,
    count: int | None = None,
    num_tokens: int | None = None,
    strategy: str = "cherry",
    seed: int = 0,
) -> pl.DataFrame:
    """The lines of ``scores`` that a strategy chooses, in the order of the input.

    ``row`` is the position of a record in the input. ``scores`` may have columns of your own.
    ``strategy`` is a file of ``conf/select/``, and ``settings`` are words of the command line, as
    in ``"select.where=rating > 4"``; they may name the columns of ``scores`` only. See
    :class:`selection.choice.Choice` for the other arguments.

    Raises:
        UserError: no row would be chosen, or more rows than are usable; or there is no such
            strategy.
    """
    known = list_groups()["select"]
    if strategy not in known:
        raise UserError(f"strategy={strategy}: choose from {', '.join(known)}")
    needed = {name for name in SCORES if name not in GAINS}
    if not isinstance(scores, pl.DataFrame) or not needed <= set(scores.columns):
        raise UserError("scores: give the frame that score() returned")
    sizes = {"fraction": fraction, "count": count, "num_tokens": num_tokens}
    given = [f"select.{name}={size}" for name, size in sizes.items() if size is not None]
    no_default = [] if given else ["select.fraction=null"]
    words = [f"select={strategy}", f"seed={seed}", *no_default, *settings, *given]
    config = _compose(words, "select() reads nothing but the frame of scores; leave it out")
    return select_rows(scores, choice_of(config))


def _compose(settings: Sequence[str], refusal: str) -> Config:
    """The configuration; ``refusal`` says what to give in place of a setting of ARGUMENTS."""
    for word in settings:
        key = word.partition("=")[0].lstrip("+")
        if key in ARGUMENTS:
            raise UserError(f"{word}: {refusal.format(ARGUMENTS[key])}")
    try:
        config = compose("run_dir=runs/unused", *read_words(settings, is_sweep=False))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None
    if config.share.count != 1:
        raise UserError("share.count: score() scores all rows; use the command line for shares")
    return config


def _find_data(data: str | Path | pl.DataFrame | Records, folder: Path) -> str:
    """The path of the data; records are written to ``folder`` first."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, pl.DataFrame):
        data = data.iter_rows(named=True)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(f"data: {type(data).__name__}; give a path, a list of records or a frame")
    lines = [_to_json(record, number) for number, record in enumerate(data)]
    if not lines:
        raise UserError("data: no records; give at least one")
    file = folder / "records.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def _to_json(record: Any, number: int) -> str:
    if not isinstance(record, Mapping):
        raise UserError(f"record {number}: {type(record).__name__}; give a mapping of its fields")
    try:
        return json.dumps(dict(record))
    except TypeError as error:
        raise UserError(
            f"record {number}: {error}; give text, numbers, lists or mappings"
        ) from None
