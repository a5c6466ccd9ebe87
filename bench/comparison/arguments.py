"""The command line of ``python -m bench.comparison``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import bench.comparison
from bench.comparison.entries import Budget
from cherry_vllm.checks import FRACTION, MOST_LONG, whole
from cherry_vllm.errors import UserError


class Parser(argparse.ArgumentParser):
    """Mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """See :class:`argparse.ArgumentParser`."""
        raise UserError(f"{message}; see --help")


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options, and ``settings``: what is for the pipeline, as in ``data.path=FILE``.

    Raises:
        UserError: an option does not exist, or has a value that it does not take.
    """
    settings = [word for word in words if "=" in word and not word.startswith("-")]
    found = _build_parser().parse_args([word for word in words if word not in settings])
    found.settings = settings
    _check(found)
    if found.tokens_of.isdecimal():
        found.tokens_of = int(found.tokens_of)
        whole(1, MOST_LONG).check("--tokens-of", found.tokens_of)
    if found.without_experience == []:
        found.without_experience = ["cherry"]
    return found


def _build_parser() -> Parser:
    parser = Parser(
        prog="python -m bench.comparison",
        description=bench.comparison.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--strategies",
        nargs="+",
        default=["cherry"],
        metavar="NAME",
        help="of conf/select; NAME:rows and NAME:tokens set its budget",
    )
    add(
        "--budgets",
        nargs="+",
        choices=list(Budget),
        default=["rows"],
        help="equal rows, equal answer tokens, or a comparison of each (rows)",
    )
    add("--fraction", type=float, default=0.1, help="of the pool, for a choice by rows (0.1)")
    add(
        "--tokens-of",
        default="cherry",
        metavar="NAME",
        help="whose choice by rows sets the answer tokens; or their number (cherry)",
    )
    add("--rows", type=int, default=1000, help="of the pool (1000)")
    add("--held-out", type=int, default=200, help="rows of each held-out set (200)")
    add("--other", metavar="FILE", help="data of another kind; its format is found out")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="SEED",
        help="of all that is random (0 1 2)",
    )
    add(
        "--without-experience",
        nargs="*",
        metavar="NAME",
        help="strategies (cherry) that choose by scores of the base model as well",
    )
    add("--keep-models", action="store_true", help="instead of removing each once it is measured")
    add(
        "--run-dir",
        type=Path,
        default=Path("runs/comparison"),
        metavar="FOLDER",
        help="of the results",
    )
    return parser


def _check(found: argparse.Namespace) -> None:
    """Raises a UserError for a number that is out of its range."""
    FRACTION.check("--fraction", found.fraction)
    for name, least in (("rows", 1), ("held_out", 1)):
        whole(least).check(f"--{name.replace('_', '-')}", getattr(found, name))
    for seed in found.seeds:
        whole(0).check("--seeds", seed)
