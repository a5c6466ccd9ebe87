"""The command line: ``cherry-vllm STAGE [hydra overrides]``.

Exit codes: 0 done; 1 internal error (please report it), or ``check`` found the engine out of
bounds; 2 a mistake to fix, explained in one line on stderr; 128 + n stopped by signal n
(:mod:`runtime.signals`).
"""

import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cherry_vllm import __version__
from cherry_vllm.cli.help import HYDRA_HELP, STAGES, command_help, stage_help
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable

if TYPE_CHECKING:
    from cherry_vllm.cli.launch import Failure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage that the first argument names; returns the exit code.

    It may be called several times in one process, whose state it restores at the end.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    code = 0
    with _output_open(), _process_kept():
        try:
            code = _dispatch(words)
            sys.stdout.flush()
        except UserError as error:
            return _complain(str(error))
        except OSError as error:  # from stdout: a stage's own errors are returned as failures
            _forget_stdout()
            if code:  # the stage has told its failure
                return code
            if isinstance(error, BrokenPipeError):  # the reader left, as `head` does
                return 128 + signal.SIGPIPE
            return _complain(f"stdout: {error.strerror}; check where the output goes")
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(command_help())
        return 0 if words else 2
    if "--version" in words:
        print(__version__)
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        from cherry_vllm.cli.completion import complete

        print(complete(words[1:]))
        return 0
    if "--hydra-help" in words:
        print(HYDRA_HELP)
        return 0
    stage, *rest = words
    if stage.startswith("-"):
        raise UserError(f"{stage}: put the stage first, as in cherry-vllm score {stage}")
    if stage not in STAGES:
        raise UserError(f"{stage}: no such stage; choose from {', '.join(STAGES)}")
    if {"-h", "--help"} & set(rest):
        print(stage_help(stage))
        return 0
    return _run(stage, rest)


def _run(stage: str, words: list[str]) -> int:
    from cherry_vllm.cli.launch import describe_failure, launch
    from cherry_vllm.cli.words import name_values

    # torch then asks for huge pages: training on CPUs takes a sixth less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        failures = launch(stage, name_values(words, STAGES[stage].words))
    except BrokenPipeError:
        raise
    except Exception as error:
        failures = [describe_failure(error)]
    asked = {word.lstrip("+").lower() for word in words}
    is_verbose = "verbose=true" in asked or os.environ.get("HYDRA_FULL_ERROR") == "1"
    return min((_report(failure, is_verbose=is_verbose) for failure in failures), default=0)


def _report(failure: "Failure", *, is_verbose: bool) -> int:
    if not failure.trace:
        return _complain(failure.message, failure.exit_code)
    if is_verbose:
        print(failure.trace, file=sys.stderr)
        details = "the traceback is above"
    else:
        descriptor, name = tempfile.mkstemp(prefix="cherry-vllm-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(failure.trace)
        details = f"its traceback is in {name}"
    _say(f"internal error (please report it): {failure.message}; {details}")
    return 1


def _complain(message: str, exit_code: int = 2) -> int:
    _say(message)
    return exit_code


def _say(message: str) -> None:
    print(f"cherry-vllm: {printable(message)}", file=sys.stderr)


def _forget_stdout() -> None:
    """Drops unwritten output, which the interpreter would try to write again when it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _output_open() -> Iterator[None]:
    """Opens output that the caller closed, as ``>&-`` does, so that no file takes its place."""
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(nowhere))
        yield


@contextmanager
def _process_kept() -> Iterator[None]:
    """Restores what a stage changes in its process: environment, logging and output."""
    environment = dict(os.environ)
    root, ours = logging.getLogger(), logging.getLogger("cherry_vllm")
    levels, handlers = (root.level, ours.level), root.handlers[:]
    errors = getattr(sys.stdout, "errors", None)
    if isinstance(sys.stdout, io.TextIOWrapper):  # to print file names that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors=errors)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        root.handlers[:] = handlers
        os.environ.clear()
        os.environ.update(environment)
