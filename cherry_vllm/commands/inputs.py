"""What commands start from: the input, the model and its prompt, and the lock on the run folder."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl

from cherry_vllm.config import Config, as_list, engine_settings, executor_settings, prompt_of
from cherry_vllm.engines.checkpoint import Checkpoint, find_checkpoint
from cherry_vllm.engines.settings import EngineSettings, ServerSettings
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.compatibility import answer_warnings, check_place
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.snapshot import settle_prompt
from cherry_vllm.sources import Columns, Layout, find_files
from cherry_vllm.sources.row_shards import read_row_shards
from cherry_vllm.store.earlier_release import warn_of_earlier_release
from cherry_vllm.store.locks import exclusive, exclusive_share
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import ModelUse, Share

log = logging.getLogger(__name__)


def find_input(config: Config) -> list[Path]:
    """The files of ``data.path``."""
    path = config.data.path
    if path is None:
        raise UserError("data.path: not given; add data.path=... (a file, a glob or hf://...)")
    return find_files(as_list(path), split=config.data.split, config=config.data.config)


def find_model(config: Config) -> Checkpoint:
    """The checkpoint of ``model.path``, or of the adapter there, merged into its base."""
    model = config.model
    if not model.path:
        raise UserError("model.path: not given; add model.path=... (a model folder or a hub id)")
    checkpoint = find_checkpoint(
        model.path, base=model.base, trust_remote_code=model.trust_remote_code
    )
    _refuse_run_in_model(config, checkpoint)
    return checkpoint


def find_used_model(config: Config, *, num_tokens: int) -> Checkpoint:
    """The model that the engine uses: that of the servers, if it asks some, or :func:`find_model`.

    Servers must take sequences of ``num_tokens`` tokens.
    """
    engine, model = find_engine(config), config.model
    if not (isinstance(engine, ServerSettings) and model.path):
        return find_model(config)
    if model.base is not None:
        raise UserError("model.base: the servers hold the model with its adapter; leave it out")
    from cherry_vllm.engines.served import find_served

    remote = model.trust_remote_code
    served = find_served(model.path, engine, num_tokens=num_tokens, trust_remote_code=remote)
    _refuse_run_in_model(config, served)
    return served


def find_engine(config: Config) -> EngineSettings:
    """The engine's settings; servers serve a model under its path unless another name is given."""
    engine = engine_settings(config.engine)
    if isinstance(engine, ServerSettings) and engine.model is None:
        return replace(engine, model=config.model.path)
    return engine


def _refuse_run_in_model(config: Config, checkpoint: Checkpoint) -> None:
    model = config.model
    sources = [Path(name) for name in (model.path, model.base) if name and Path(name).is_dir()]
    for key, place in (("run_dir", config.run_dir), ("scores_dir", config.scores_dir)):
        for folder in (checkpoint.folder, *sources):
            if Path(place).resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{key}={place}: is in the model folder, so each run would change the model; "
                    "choose another"
                )


def read_input(config: Config, files: Sequence[Path], *, is_made_here: bool = False) -> Shards:
    """The row shards of the input, which is read only if they do not exist yet.

    ``is_made_here`` means that another stage wrote the files: their suffix names the format, and
    all rows are read.
    """
    run_dir = Path(config.run_dir)
    warn_of_earlier_release(run_dir)
    return read_row_shards(
        run_dir,
        files,
        columns=Columns(**asdict(config.data.columns)),
        layout=Layout() if is_made_here else layout_of(config),
        turns=config.score.turns,
        refusals=config.refusals.phrases,
        max_rows=None if is_made_here else config.data.max_rows,
        shard_rows=config.shard_rows,
    )


def layout_of(config: Config) -> Layout:
    """How the records lie in the files of ``data.path``."""
    data = config.data
    return Layout(data.format, data.field, data.encoding, data.delimiter)


@contextmanager
def hold_share(config: Config) -> Iterator[Share]:
    """Locks the run folder, or only this process's share of its shards."""
    run_dir, share = Path(config.run_dir), Share(config.share.index, config.share.count)
    share.check()
    with (
        exclusive(run_dir)
        if share.count == 1
        else exclusive_share(run_dir, share.index, share.count)
    ):
        yield share


def find_prompt(config: Config, checkpoint: Checkpoint) -> Prompt:
    """The prompt, with the date and text of the checkpoint's chat template fixed."""
    remote = config.model.trust_remote_code
    return settle_prompt(checkpoint.folder, prompt_of(config), trust_remote_code=remote)


def check_compatibility(
    config: Config,
    checkpoint: Checkpoint,
    prompt: Prompt,
    rows: Shards,
    *,
    with_answers: bool = True,
) -> None:
    """Checks that the prompt takes the rows; warns about answers that do not continue it.

    Raises:
        UserError: the prompt has no place for what the rows hold.
    """
    usable = rows.scan().filter(pl.col("drop_reason").is_null())
    remote = config.model.trust_remote_code
    check_place(checkpoint.folder, prompt, usable, trust_remote_code=remote)
    for warning in answer_warnings(prompt, usable) if with_answers else []:
        log.warning(warning)


def model_use(config: Config, prompt: Prompt) -> ModelUse:
    """The settings for running a model over rows."""
    return ModelUse(
        prompt=prompt,
        max_length=config.max_length,
        engine=find_engine(config),
        executor=executor_settings(config.executor),
        trust_remote_code=config.model.trust_remote_code,
    )
