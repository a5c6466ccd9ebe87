"""Instruction-Following Difficulty (IFD) scores and cherry data, at scale.

The method is "From Quantity to Quality" (arXiv 2308.12032). In Python:

    scores = cherry_vllm.score("alpaca.json", "path/to/model")
    cherry = cherry_vllm.select(scores, fraction=0.1)
"""

from typing import TYPE_CHECKING, Any

from cherry_vllm.errors import UserError

if TYPE_CHECKING:
    from cherry_vllm.api import score, select

__version__ = "0.2.0"
__all__ = ["UserError", "__version__", "score", "select"]


def __getattr__(name: str) -> Any:
    if name not in ("score", "select"):
        raise AttributeError(f"module 'cherry_vllm' has no attribute '{name}'")
    # Imported on first use, so that the command line starts without them.
    from cherry_vllm import api

    return getattr(api, name)
