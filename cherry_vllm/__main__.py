"""The console script ``cherry-vllm``, and ``python -m cherry_vllm``."""

import sys

from cherry_vllm.runtime.imports import forget_current_directory


def main() -> int:
    """Runs the command line; returns the exit code."""
    forget_current_directory()  # before anything is imported from there
    from cherry_vllm.runtime.signals import obeying_signals

    with obeying_signals():
        from cherry_vllm import cli

        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
