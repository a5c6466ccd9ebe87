"""Code comes from the installation alone, never from the folder of the data.

Data folders are downloaded: a ``tqdm.py`` in one must not run. Python looks into the current
directory for ``python -m`` and ``python -c``, and for entries of PYTHONPATH that are empty (as in
``PYTHONPATH=$PYTHONPATH:/more``) or relative. This file imports nothing that a folder could hold.
"""

import os
import sys


def forget_current_directory() -> None:
    """Takes the current directory off this process's path, and off that of all it will start."""
    make_environment_safe()
    kept = _absolute(os.environ.get("PYTHONPATH", ""))
    sys.path[:] = [entry for entry in sys.path if entry in kept or not _is_here(entry)]


def make_environment_safe() -> None:
    """Keeps every Python that this process will start from looking where it is started."""
    environment = safe_environment()
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(environment)


def safe_environment() -> dict[str, str]:
    """This process's environment for another Python that is not to look where it is started."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    kept = _absolute(environment.pop("PYTHONPATH", ""))
    return {**environment, "PYTHONPATH": os.pathsep.join(kept)} if kept else environment


def _absolute(path: str) -> list[str]:
    return [entry for entry in path.split(os.pathsep) if os.path.isabs(entry)]  # noqa: PTH117


def _is_here(entry: str) -> bool:
    try:
        return os.path.realpath(entry) == os.getcwd()  # noqa: PTH109
    except OSError:  # the current directory is gone
        return not os.path.isabs(entry)  # noqa: PTH117
