"""Runs a stage through Hydra: flags, overrides, one job or the jobs of a sweep.

A job returns its failure instead of raising it: a launcher passes back what a job returns, from
whatever process or machine the job ran in.
"""

import argparse
import contextlib
import errno
import io
import itertools
import os
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cherry_vllm.cli.explain import explain, is_explained, refuse_other_encodings
from cherry_vllm.cli.words import read_words
from cherry_vllm.config import CONF, register, typed
from cherry_vllm.errors import UserError

# Errors of the place that a run writes to, not of the program.
PLACE_ERRORS = {
    errno.EACCES,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOLCK,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTSUP,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


class Failure(NamedTuple):
    """Why a job did not do its work."""

    message: str
    trace: str = ""  # of an internal error
    exit_code: int = 2  # without a trace


READER_LEFT = Failure("stdout: its reader left")  # as `head` does; not told


def describe_failure(error: Exception) -> Failure:
    """The failure in one line; it has a traceback unless it is the user's mistake or the disk's."""
    if isinstance(error, UserError):
        return Failure(str(error), exit_code=error.exit_code)
    if isinstance(error, MemoryError):
        return Failure("out of memory; free some, or lower shard_rows")
    if isinstance(error, OSError) and error.errno in PLACE_ERRORS:
        return Failure(_explain_place(error))
    if is_explained(error):
        return Failure(explain(error))
    if type(error).__module__.startswith("submitit."):
        return Failure(_explain_lost_job(str(error)))
    trace = "".join(traceback.format_exception(error))
    return Failure(f"{type(error).__name__}: {error}", trace)


def _explain_place(error: OSError) -> str:
    """The place that an operating system's error is about, which a failed write does not name."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}; check that place and its disk"
    try:
        print(flush=True)  # fails again if it is stdout that cannot be written
    except OSError:
        return f"stdout: {error.strerror}; check where the output goes"
    return f"{error.strerror}; check run_dir, the other outputs and their disks"


def _explain_lost_job(report: str) -> str:
    """The most informative line of submitit's report on a job without a result."""
    lines = [line for line in report.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    reason = (errors or lines or ["no reason given"])[-1].strip()
    return f"a job of the launcher ended without a result: {reason}; see its log in hydra.sweep.dir"


def run_stage(stage: str, composed: DictConfig) -> Failure | None:
    """Runs a job: one stage on one configuration; returns its failure, if any."""
    # Imported here, so that a mistake in the command is reported without delay.
    from cherry_vllm.cli.stages import STAGES
    from cherry_vllm.commands.job import Job
    from cherry_vllm.runtime.console import set_verbose
    from cherry_vllm.runtime.signals import restore_handlers

    restore_handlers()  # Polars has replaced one
    settings = HydraConfig.get()
    try:
        config = typed(composed)
        set_verbose(is_verbose=config.verbose)
        is_sweep = settings.mode is RunMode.MULTIRUN
        output_dir = settings.runtime.output_dir if is_sweep else config.run_dir
        if is_sweep:
            _check_inside(Path(output_dir), Path(settings.sweep.dir))
        command = shlex.join(["cherry-vllm", stage, *settings.overrides.task])
        STAGES[stage](config, Job(Path(output_dir), is_sweep, command))
    except Exception as error:
        return READER_LEFT if isinstance(error, BrokenPipeError) else describe_failure(error)
    return None


def _check_inside(job: Path, sweep: Path) -> None:
    """Raises a UserError if the job's folder, named by its settings, is not below the sweep's."""
    if not job.resolve().is_relative_to(sweep.resolve()):
        raise UserError(
            f"{job}: outside the sweep's folder, because a value holds ../; number the jobs: "
            "hydra.sweep.subdir='${hydra.job.num}'"
        )


def launch(stage: str, words: Sequence[str]) -> list[Failure]:
    """Runs a stage with the flags and overrides of the command line; returns what failed.

    Raises:
        BrokenPipeError: the reader of stdout left.
        UserError: a flag or an override is not understood.
        hydra.errors.HydraException: the configuration cannot be composed.
    """
    flags = _read_flags(words)
    is_sweep = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides
    overrides = read_words(
        flags.overrides, is_sweep=is_sweep, more_groups=_folders(flags.config_dir)
    )
    with _hydra(flags) as app:
        name = flags.config_name or "config"
        if flags.cfg or flags.info:
            _show(app, flags, name, overrides)
            return []
        if flags.config_dir or flags.config_name:  # these may choose the mode as well
            is_sweep = is_sweep or app.get_mode(name, overrides) is RunMode.MULTIRUN
        task = partial(run_stage, stage)
        if not is_sweep:
            return _failures(app.run(name, task, [*overrides, "hydra.mode=RUN"]))
        overrides += ["hydra.mode=MULTIRUN", *_name_jobs(overrides)]
        if mistakes := _check_jobs(app, name, overrides):
            return mistakes
        return _failures(app.multirun(name, task, overrides))


def _read_flags(words: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, which may stand anywhere among the overrides."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see cherry-vllm --hydra-help") from None
    if unknown:
        raise UserError(f"{unknown[0]}: no such flag; see cherry-vllm --hydra-help")
    if flags.experimental_rerun:
        raise UserError("--experimental-rerun: not supported; give the same command again")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve: only works with --cfg job; add it, or leave --resolve out")
    asked = [flag for flag in ("run", "multirun", "cfg", "info") if getattr(flags, flag)]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]}: give one of them")
    for flag in ("config_dir", "config_path"):
        folder = getattr(flags, flag)
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"--{flag.replace('_', '-')} {folder}: no such folder")
    return flags


def _folders(config_dir: str | None) -> list[str]:
    """The groups of the user's own configuration folder."""
    return [path.name for path in Path(config_dir).iterdir() if path.is_dir()] if config_dir else []


@contextlib.contextmanager
def _hydra(flags: argparse.Namespace) -> Iterator[Hydra]:
    version.setbase("1.3")
    register()
    path = create_config_search_path(str(Path(flags.config_path or CONF).absolute()))
    if flags.config_dir:
        schema = SearchPathQuery(provider="schema", path=None)
        path.prepend("command-line", f"file://{Path(flags.config_dir).absolute()}", schema)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("cherry-vllm", path)
    except UnicodeDecodeError:
        for folder in filter(None, (flags.config_dir, flags.config_path)):
            refuse_other_encodings(Path(folder))
        raise
    finally:
        GlobalHydra.instance().clear()


def _show(app: Hydra, flags: argparse.Namespace, name: str, overrides: list[str]) -> None:
    if flags.info:
        app.show_info(flags.info, config_name=name, overrides=overrides)
    else:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                app.show_cfg(name, overrides, flags.cfg, flags.package, resolve=flags.resolve)
        except SystemExit:
            raise UserError(f"--package {flags.package}: no such part; see --cfg job") from None


def _check_jobs(app: Hydra, name: str, overrides: list[str]) -> list[Failure]:
    """The mistakes in the jobs of a sweep; only Hydra's basic sweeper knows its jobs beforehand.

    Raises:
        UserError: there is no job.
    """
    sweep = app.compose_config(name, overrides, RunMode.MULTIRUN, with_log_configuration=False)
    _refuse_own_multirun(Path(sweep.hydra.sweep.dir))
    sweeper: Any = sweep.hydra.sweeper or {}
    if not sweeper.get("_target_", "").endswith(".BasicSweeper"):
        return []
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    given: Any = OmegaConf.to_container(sweep.hydra.overrides.task, resolve=False)
    words += given
    parsed = OverridesParser.create(config_loader=app.config_loader).parse_overrides(words)
    jobs = itertools.chain.from_iterable(BasicSweeper.split_arguments(parsed, None))
    mistakes = [_check_job(app, sweep, job) for job in jobs]
    if not mistakes:
        raise UserError("no job to run: a glob() or a range() finds no value; list the values")
    return list(dict.fromkeys(mistake for mistake in mistakes if mistake))


def _refuse_own_multirun(folder: Path) -> None:
    """Raises a UserError if a file of the user's is where Hydra records the sweep."""
    file = folder / "multirun.yaml"
    if file.is_file() and not file.read_bytes().startswith(b"hydra:"):
        raise UserError(f"{file}: exists and is not from a sweep, which writes one there; move it")


def _check_job(app: Hydra, sweep: DictConfig, job: list[str]) -> Failure | None:
    composed = app.config_loader.load_sweep_config(sweep, job)
    with open_dict(composed):
        del composed["hydra"]
    try:
        typed(composed)
    except UserError as error:
        return Failure(str(error))
    except OmegaConfBaseException:  # as of ${hydra:job.num}, which is known once the job starts
        return None
    return None


def _failures(returned: Any) -> list[Failure]:
    """The failures of the jobs, each once."""
    failures = list(dict.fromkeys(_each_failure(returned)))
    if READER_LEFT in failures:
        raise BrokenPipeError
    return failures


def _each_failure(returned: Any) -> Iterator[Failure]:
    """The failures among the jobs that a sweeper returns in nested lists."""
    if isinstance(returned, JobReturn):
        if returned.return_value:
            yield returned.return_value
    elif isinstance(returned, list):
        for item in returned:
            yield from _each_failure(item)


def _name_jobs(overrides: list[str]) -> list[str]:
    """The override that names a job's folder only by what differs between jobs."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    shared = {item.key_or_group for item in parsed if not item.is_sweep_override()}
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(shared))}]"]
