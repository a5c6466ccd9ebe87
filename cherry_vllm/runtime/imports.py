"""Code is imported from the installation only, never from the folder of the data.

Data folders are downloaded: a ``tqdm.py`` in one must not run. Python looks into the current
directory for ``python -m`` and ``python -c``, and for entries of PYTHONPATH that are empty (as in
``PYTHONPATH=$PYTHONPATH:/more``) or relative. This file imports only modules that a file in the
current directory cannot replace.
"""

import os
import sys


def forget_current_directory() -> None:
    """Removes the current directory from the import path of this process and its children."""
    make_environment_safe()
    kept = _absolute(os.environ.get("PYTHONPATH", ""))
    sys.path[:] = [entry for entry in sys.path if entry in kept or not _is_here(entry)]


def make_environment_safe() -> None:
    """Keeps every Python that this process starts from importing from its current directory."""
    environment = safe_environment()
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(environment)


def safe_environment() -> dict[str, str]:
    """This process's environment, for a Python that must not import from its current directory."""
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
