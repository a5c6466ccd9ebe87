"""Many requests at once: each reply is stored and paid for once, and a run ends when it should."""

import errno
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import Endpoint
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.requests import ask_all, name_request
from tests.judge_server import HEADERS, Fault, JudgeServer, completion
from tests.judging import endpoint_settings

ERROR = '{"error": {"message": "no"}}'
REPLY = Fault(body=completion("8 9"))


def connect(server: JudgeServer, **changes: float) -> Endpoint:
    return Endpoint(endpoint_settings(server.url, **changes))


def requests_to(endpoint: Endpoint, count: int) -> dict[str, Request]:
    bodies = (
        {"model": "m", "messages": [{"role": "user", "content": f"question {number}."}]}
        for number in range(count)
    )
    return {name_request(body, endpoint): body for body in bodies}


def test_what_decides_a_reply_names_its_request(judge_server: JudgeServer) -> None:
    here, there = connect(judge_server), Endpoint(endpoint_settings("http://localhost:1/v1"))
    request: Request = {"model": "m", "messages": [], "temperature": 0}
    name = name_request(request, here)
    assert name == name_request(dict(reversed(request.items())), here)
    assert name == name_request(request, Endpoint(endpoint_settings(f"{here.address}/")))
    others = [{**request, key: "other"} for key in request]
    names = {name, name_request(request, there), *(name_request(other, here) for other in others)}
    assert len(names) == 5
    # Not even a parameter of that name hides the address.
    named = {**request, "base_url": "x"}
    assert name_request(named, here) != name_request(named, there)


def _always(reply: Fault, _user: str, _index: int) -> Fault:
    return reply


def test_a_second_judge_of_the_same_name_at_another_address_is_asked(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    other = JudgeServer()
    try:
        for server, text in ((judge_server, "8 9"), (other, "1 2")):
            reply = Fault(body=completion(text))
            server.script = partial(_always, reply)
            for _ in range(2):  # the second time, from the file
                endpoint = connect(server)
                replies = ask_all(tmp_path, requests_to(endpoint, 3), endpoint).replies
                assert {reply.text for reply in replies.values()} == {text}
        assert len(judge_server.received) == len(other.received) == 3
    finally:
        other.shutdown()
        other.server_close()
    lines = map(json.loads, (tmp_path / "replies.jsonl").read_text().splitlines())
    assert {line["base_url"] for line in lines} == {judge_server.url, other.url}


def test_an_empty_reply_counts_as_failed_and_is_asked_again(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    endpoint = connect(judge_server)
    requests = requests_to(endpoint, 3)
    empty = Fault(body=completion(""))
    judge_server.script = lambda user, index: empty if "1." in user and index == 0 else REPLY
    responses = ask_all(tmp_path, requests, endpoint)
    assert len(responses.replies) == 2
    assert responses.failures == {"empty reply (finish_reason stop)": 1}
    responses = ask_all(tmp_path, requests, endpoint)
    assert len(responses.replies) == 3
    assert not responses.failures
    assert len(judge_server.received) == 4


def test_requests_run_side_by_side_up_to_the_limit(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge_server.script = lambda _user, _index: REPLY._replace(delay_s=0.05)
    endpoint = connect(judge_server, concurrency=3)
    assert len(ask_all(tmp_path, requests_to(endpoint, 12), endpoint).replies) == 12
    assert judge_server.max_under_way == 3


def test_a_failed_request_is_counted_and_asked_again_and_nothing_else_is(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    endpoint = connect(judge_server)
    requests = requests_to(endpoint, 5)
    judge_server.script = lambda user, index: (
        Fault(400, ERROR) if "3." in user and index == 0 else REPLY
    )
    responses = ask_all(tmp_path, requests, endpoint)
    assert len(responses.replies) == 4
    assert responses.failures == {"HTTP 400 - no": 1}
    responses = ask_all(tmp_path, requests, endpoint)
    assert set(responses.replies) == set(requests)
    assert not responses.failures
    assert len(judge_server.received) == 6


def test_an_endpoint_that_is_down_ends_the_run_early(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge_server.script = lambda _user, _index: Fault(500, ERROR)
    endpoint = connect(judge_server, max_tries=1)
    with pytest.raises(UserError, match=r"none of 4 requests has a reply; first: HTTP 500"):
        ask_all(tmp_path, requests_to(endpoint, 4), endpoint)
    with pytest.raises(UserError, match=r"20 requests failed one after another.*HTTP 500"):
        ask_all(tmp_path, requests_to(endpoint, 100), endpoint)
    assert len(judge_server.received) < 30


def test_refusals_one_after_another_say_nothing_about_the_next_request(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge_server.script = lambda user, _index: REPLY if "31." in user else Fault(400, ERROR)
    endpoint = connect(judge_server, concurrency=1)
    responses = ask_all(tmp_path, requests_to(endpoint, 32), endpoint)
    assert responses.failures == {"HTTP 400 - no": 31}
    assert len(responses.replies) == 1


def test_one_fatal_refusal_ends_the_waits_of_the_others(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    busy = Fault(503, ERROR, {**HEADERS, "Retry-After": "30"})
    judge_server.script = lambda user, _index: Fault(401, ERROR) if "1." in user else busy
    endpoint = connect(judge_server, concurrency=6)
    started = time.monotonic()
    with pytest.raises(UserError, match="HTTP 401"):
        ask_all(tmp_path, requests_to(endpoint, 6), endpoint)
    assert time.monotonic() - started < 5


def test_a_full_disk_is_told_as_such(
    judge_server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    judge_server.script = lambda _user, _index: REPLY
    endpoint = connect(judge_server)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        ask_all(tmp_path, requests_to(endpoint, 3), endpoint)
    assert (tmp_path / "replies.jsonl").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_requests_in_flight_and_keeps_every_stored_reply(
    judge_server: JudgeServer, tmp_path: Path, number: signal.Signals
) -> None:
    def interrupt(received: int, _frame: object) -> None:
        raise KeyboardInterrupt(received)

    def signal_in_flight() -> None:
        while len(judge_server.received) < 6:
            time.sleep(0.01)
        time.sleep(0.1)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    sent: list[float] = []
    judge_server.script = lambda user, _index: (
        REPLY if "0." in user or "1." in user else REPLY._replace(delay_s=30)
    )
    endpoint = connect(judge_server, concurrency=4, timeout_s=60)
    before = signal.signal(number, interrupt) if number == signal.SIGTERM else None
    thread = threading.Thread(target=signal_in_flight)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask_all(tmp_path, requests_to(endpoint, 8), endpoint)
    finally:
        thread.join()
        if before:
            signal.signal(number, before)
    assert time.monotonic() - sent[0] < 2
    stored = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in stored] == ["8 9"] * 2
