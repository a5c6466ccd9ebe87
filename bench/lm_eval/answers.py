"""The numbers that lm-evaluation-harness adds up for the task in held_out_answers.yaml."""

from typing import Any


def process_results(
    row: dict[str, Any], results: list[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """An answer's log-likelihood, in nats, and its length in bytes."""
    ((log_likelihood, _is_greedy),) = results
    return {"bits_per_byte": (log_likelihood, len(row["output"].encode()))}
