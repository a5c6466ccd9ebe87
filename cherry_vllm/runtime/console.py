"""What the libraries print: only errors, or everything with ``verbose=true``."""

import os
import warnings

VERBOSE = "CHERRY_VLLM_VERBOSE"  # an environment variable, so that all processes of a run see it
QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


def set_verbose(*, is_verbose: bool) -> None:
    """Sets whether libraries may print, in this process and those that it starts."""
    os.environ[VERBOSE] = "1" if is_verbose else "0"
    quiet_libraries()


def is_verbose() -> bool:
    """Whether the libraries may print warnings, log lines and bars."""
    return os.environ.get(VERBOSE) == "1"


def quiet_libraries() -> None:
    """Keeps libraries from printing, unless the run is verbose; call it before importing them.

    Variables that the user has set are left as they are.
    """
    if is_verbose():
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if os.environ["PYTHONWARNINGS"] == QUIET["PYTHONWARNINGS"]:
        warnings.simplefilter("ignore")
