"""The console script: ``cherry-vllm STAGE [hydra overrides]``.

Exit codes: 0 done; 2 the user's mistake, one line on stderr; 1 internal error (please report it);
128 + n stopped by signal n (:mod:`runtime.signals`).
"""

import errno
import os
import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cherry_vllm import __version__
from cherry_vllm.commands import pipeline as method
from cherry_vllm.commands.demo import fetch_demo
from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.inputs import Job
from cherry_vllm.commands.judge import judge
from cherry_vllm.commands.report import report
from cherry_vllm.commands.sample import embed, sample
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.commands.train import train
from cherry_vllm.config import CONF, register, typed
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable

STAGES = {
    "pipeline": method.run,
    "embed": embed,
    "sample": sample,
    "train": train,
    "score": score,
    "select": select,
    "generate": generate,
    "judge": judge,
    "report": report,
    "fetch-demo": fetch_demo,
}

# What is wrong with the place that a run writes to, not with the program.
PLACE_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOLCK,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EROFS,
)

USAGE = """\
usage: cherry-vllm STAGE [overrides]

stages:
  pipeline    the whole method: data and a base model to a model tuned on cherry data
  embed       prompts to the base model's embeddings and perplexities
  sample      embeddings to the rows that the pre-experienced model learns from
  train       data and a model to a tuned model
  score       data and a model to IFD scores
  select      scores to cherry data
  generate    a test set and a model to its answers
  judge       two models' answers to verdicts
  report      a run to one page and its pictures
  fetch-demo  the demo's checkpoint and data

`cherry-vllm STAGE --help` lists configuration groups and keys, `--cfg job` prints the
composed configuration, `-m` sweeps over comma-separated values."""


def run_stage(config: DictConfig) -> None:
    """Runs the stage that the command line named, on the typed configuration."""
    stage = STAGES[os.environ["CHERRY_VLLM_STAGE"]]
    settings = HydraConfig.get()
    try:
        checked = typed(config)
        is_sweep = settings.mode is RunMode.MULTIRUN
        output_dir = settings.runtime.output_dir if is_sweep else checked.run_dir
        words = ["cherry-vllm", os.environ["CHERRY_VLLM_STAGE"], *settings.overrides.task]
        stage(checked, Job(Path(output_dir), is_sweep, shlex.join(words)))
    except UserError as error:
        raise SystemExit(_complain(str(error))) from None
    except OSError as error:
        raise SystemExit(_complain_of_place(error)) from None


def main() -> int:
    """Runs the stage named first on the command line; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    stage, *overrides = arguments
    if stage not in STAGES:
        return _complain(f"{stage}: no such stage; choose from {', '.join(STAGES)}")
    return _run_hydra(stage, overrides)


def _run_hydra(stage: str, overrides: list[str]) -> int:
    # In the environment, so that the jobs of any Hydra launcher find it.
    os.environ["CHERRY_VLLM_STAGE"] = stage
    # torch then asks for huge pages: training on CPUs takes a sixth less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Hydra then raises what it would print itself with exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra's parser wants its flags before the overrides; people write them anywhere.
    sweep = [word for word in overrides if word in ("-m", "--multirun")]
    overrides = [word for word in overrides if word not in sweep]
    register()
    try:
        sys.argv = [sys.argv[0], *sweep, *overrides, *(_name_jobs(overrides) if sweep else [])]
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(run_stage)()
    except (HydraException, OmegaConfBaseException) as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return _complain(" ".join(f"{error}{cause}".split()))
    except OSError as error:  # from Hydra, which makes the folders of a sweep
        return _complain_of_place(error)
    return 0


def _name_jobs(overrides: list[str]) -> list[str]:
    """Names a job's folder by what differs from job to job, and by nothing else."""
    words = [word for word in overrides if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    shared = {item.key_or_group for item in parsed if not item.is_sweep_override()}
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(shared))}]"]


def _complain(message: str) -> int:
    print(f"cherry-vllm: {printable(message)}", file=sys.stderr)
    return 2


def _complain_of_place(error: OSError) -> int:
    if error.errno not in PLACE_ERRORS:
        raise error
    return _complain(f"{error.filename or 'run_dir'}: {error.strerror}; check run_dir and its disk")
