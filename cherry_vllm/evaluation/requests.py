"""Requests to replies: each is stored in ``run_dir/replies.jsonl`` as it comes, and asked once."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint, RefusedError, RequestError
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.replies import Replies, Reply
from cherry_vllm.runtime.progress import progress_bar
from cherry_vllm.store.files import fingerprint

MAX_FAILURES_IN_A_ROW = 20  # then the endpoint is down, and the rest would only wait for nothing


def ask_all(
    run_dir: Path, requests: Mapping[str, Request], endpoint: Endpoint, *, concurrency: int
) -> tuple[dict[str, Reply], Counter[str]]:
    """The replies to requests by their fingerprint; and why others have none, counted.

    A request that failed is asked again by the next run; one that has a reply in ``run_dir``, from
    whatever run, is not sent.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    with Replies(run_dir / "replies.jsonl") as stored:
        failures = _ask_missing(requests, stored, endpoint, concurrency)
        found = {name: stored.get(name) for name in requests}
    if requests and len(failures) == len(requests):
        reason = next(iter(failures.values()))
        raise UserError(f"judge: none of {len(requests)} requests has a reply; first: {reason}")
    return {name: reply for name, reply in found.items() if reply}, Counter(failures.values())


def ask_about_rows(
    run_dir: Path, bodies: Mapping[int, Request], endpoint: Endpoint, *, concurrency: int
) -> tuple[dict[int, tuple[str, Reply | None]], Counter[str]]:
    """As :func:`ask_all`, by row: the request's fingerprint, and its reply if there is one."""
    names = {row: fingerprint(body) for row, body in bodies.items()}
    requests = {names[row]: body for row, body in bodies.items()}
    replies, failures = ask_all(run_dir, requests, endpoint, concurrency=concurrency)
    return {row: (name, replies.get(name)) for row, name in names.items()}, failures


def _ask_missing(
    requests: Mapping[str, Request], replies: Replies, endpoint: Endpoint, concurrency: int
) -> dict[str, str]:
    """Asks what has no reply yet; returns the reasons of those that failed for good."""
    missing = {name: body for name, body in requests.items() if replies.get(name) is None}
    failures: dict[str, str] = {}
    num_in_a_row = 0
    with (
        progress_bar("judging", total=len(requests), initial=len(requests) - len(missing)) as bar,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        try:
            asked = {
                pool.submit(_ask, name, body, replies, endpoint): name
                for name, body in missing.items()
            }
            for future in as_completed(asked):
                failure = future.result()
                if failure:
                    failures[asked[future]] = str(failure)
                is_fault = failure and not isinstance(failure, RefusedError)
                num_in_a_row = num_in_a_row + 1 if is_fault else 0
                if num_in_a_row == MAX_FAILURES_IN_A_ROW:
                    raise UserError(
                        f"{num_in_a_row} requests failed one after another, the last with: "
                        f"{failure}; mend it, and the same command asks only what has no reply"
                    )
                bar.update()
        except BaseException:
            endpoint.stop()
            pool.shutdown(cancel_futures=True)  # and what is under way still stores its reply
            raise
    return failures


def _ask(name: str, request: Request, replies: Replies, endpoint: Endpoint) -> RequestError | None:
    """Asks and stores; returns what made it fail for good."""
    try:
        replies.add(name, endpoint.ask(request))
    except RequestError as error:
        return error
    return None
