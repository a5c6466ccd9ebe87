"""``python -m bench.comparison``: seed by seed, results are shown as they come."""

import logging
import os
import sys
from collections.abc import Sequence

from bench.comparison.arguments import read_arguments
from bench.comparison.prepare import prepare
from bench.comparison.report import report
from bench.comparison.run import Run
from cherry_vllm.cli.launch import describe_failure
from cherry_vllm.runtime.console import set_verbose
from cherry_vllm.runtime.signals import obeying_signals
from cherry_vllm.runtime.text import OneLine, printable
from cherry_vllm.store.locks import exclusive


def main(words: Sequence[str]) -> int:
    """Compares; returns the exit code: 2 for a mistake, or if a strategy failed."""
    try:
        arguments = read_arguments(words)
        with exclusive(arguments.run_dir):
            comparison = prepare(arguments)
            for rows in (comparison.pool, *comparison.sets):
                say(str(rows))
            run = Run(comparison, arguments.run_dir, say)
            run.measure_base()
            for seed in comparison.seeds:
                run.run_seed(seed)
                report(comparison, run, arguments.run_dir, say)
    except Exception as error:
        failure = describe_failure(error)
        print(failure.trace + printable(f"comparison: {failure.message}"), file=sys.stderr)
        return 1 if failure.trace else 2
    return 2 if run.failures else 0


def say(line: str) -> None:
    """Prints a line at once."""
    print(printable(line), flush=True)


def _open_log() -> None:
    """Warnings and progress of the stages go to stderr, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("[%(asctime)s] %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("cherry_vllm.runtime.progress").setLevel(logging.INFO)


if __name__ == "__main__":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `cherry-vllm` does
    set_verbose(is_verbose=False)
    _open_log()
    with obeying_signals():
        sys.exit(main(sys.argv[1:]))
