"""Requests to replies: each reply is stored in ``run_dir/replies.jsonl`` when it arrives."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint, RefusedRequestError, RequestError
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.replies import Replies, Reply
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.store.run_folder import File

MAX_FAILURES_IN_A_ROW = 20  # then the endpoint is down, and further requests are pointless


@dataclass(frozen=True)
class Responses:
    """The replies by the name of their request, and how many others failed for each reason."""

    replies: Mapping[str, Reply]
    failures: Counter[str]


def name_request(request: Request, endpoint: Endpoint) -> str:
    """Names a request by all that decides the reply: its address and its contents."""
    return fingerprint({**request, "base_url": endpoint.address})


def ask_all(run_dir: Path, requests: Mapping[str, Request], endpoint: Endpoint) -> Responses:
    """The replies to ``requests``, whose keys are from :func:`name_request`.

    A request that failed is sent again by the next run. A request that has a reply in ``run_dir``,
    from any run, is not sent. A signal cancels the requests in flight.

    Raises:
        UserError: the endpoint refuses the settings or is down, or no request has a reply.
    """
    with Replies(run_dir / File.REPLIES) as stored:
        missing = {name: body for name, body in requests.items() if stored.get(name) is None}
        if missing:
            stored.warn_of_old_lines()
        failures = asyncio.run(_ask_missing(missing, stored, endpoint, total=len(requests)))
        found = {name: stored.get(name) for name in requests}
    if requests and len(failures) == len(requests):
        reason = next(iter(failures.values()))
        raise UserError(
            f"judge: none of {len(requests)} requests has a reply; first: {reason}; check the "
            "endpoint"
        )
    replies = {name: reply for name, reply in found.items() if reply}
    return Responses(replies, Counter(failures.values()))


def ask_about_rows(
    run_dir: Path, requests: Mapping[int, Request], endpoint: Endpoint
) -> tuple[dict[int, tuple[str, Reply | None]], Counter[str]]:
    """Like :func:`ask_all`, by row: returns each request's name and reply, and the failures."""
    names = {row: name_request(request, endpoint) for row, request in requests.items()}
    responses = ask_all(run_dir, {names[row]: requests[row] for row in requests}, endpoint)
    replies = {row: (name, responses.replies.get(name)) for row, name in names.items()}
    return replies, responses.failures


async def _ask_missing(
    missing: Mapping[str, Request], stored: Replies, endpoint: Endpoint, *, total: int
) -> dict[str, str]:
    """Sends the requests that have no reply yet; returns the reason of each failure."""
    failures: dict[str, str] = {}
    num_in_a_row = 0
    waiting = iter(missing.items())

    async def work() -> None:
        nonlocal num_in_a_row
        for name, request in waiting:  # which all workers share
            try:
                stored.add(name, await endpoint.ask(request), endpoint.address)
                num_in_a_row = 0
            except RequestError as failure:
                failures[name] = str(failure)
                num_in_a_row = 0 if isinstance(failure, RefusedRequestError) else num_in_a_row + 1
                if num_in_a_row == MAX_FAILURES_IN_A_ROW:
                    raise UserError(
                        f"{num_in_a_row} requests failed one after another, the last with: "
                        f"{failure}; fix the cause and give the same command again: it sends only "
                        "requests without a reply"
                    ) from None
            bar.update()

    with Progress("judging", unit="requests", total=total, initial=total - len(missing)) as bar:
        try:
            async with endpoint, asyncio.TaskGroup() as workers:
                for _ in range(min(endpoint.concurrency, len(missing))):
                    workers.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one worker's error ended the others
    return failures
