"""What a command gets from the command line, and what it returns."""

from pathlib import Path
from typing import Any, NamedTuple

from cherry_vllm.errors import UserError


class Job(NamedTuple):
    """What Hydra knows about the job; in a sweep, its own folder is below the run folder."""

    output_dir: Path
    is_sweep: bool
    command: str = ""  # what the user typed


class Outcome(NamedTuple):
    """The file or folder that a stage made, and facts about it."""

    artifact: Path
    facts: dict[str, Any]
    fingerprint: str | None = None  # of scores


def find_output(job: Job, key: str, name: str) -> Path:
    """The output that a setting names.

    Raises:
        UserError: in a sweep, it is outside the job's folder, where other jobs may write it too.
    """
    output = job.output_dir / name
    if job.is_sweep and not output.resolve().is_relative_to(job.output_dir.resolve()):
        raise UserError(
            f"{key}={name}: outside the folder of the job; in a sweep give only a name, since each "
            "job has a folder of its own"
        )
    return output
