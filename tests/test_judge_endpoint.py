"""The client against a server that fails in every way the network knows, then answers."""

import email.utils
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from cherry_vllm.config import compose
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.answers import Pair, read_pairs
from cherry_vllm.evaluation.endpoint import Endpoint, RequestError, read_api_key
from cherry_vllm.evaluation.pairwise import judge
from cherry_vllm.evaluation.prompts import PairRequests
from cherry_vllm.evaluation.replies import Replies, Reply
from cherry_vllm.evaluation.verdicts import decide
from tests.judge_server import HEADERS, Fault, JudgeServer, completion
from tests.test_judge_verdicts import FIRST, SECOND

KEY = "sk-0123456789-secret"
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
ERROR = '{"error": {"message": "no", "code": "full"}}'
FAULTS = {
    "429": Fault(429, ERROR),
    "500": Fault(500, "oops", {"Content-Type": "text/plain"}),
    "503": Fault(503, ERROR),
    "408": Fault(408, ERROR),
    "time-out": Fault(delay_s=0.6),
    "HTML instead of JSON": Fault(body="<html>", headers={"Content-Type": "text/html"}),
    "broken JSON": Fault(body='{"choices": [{"mess'),
    "JSON of another form": Fault(body='{"error": "busy"}'),
    "no choice": Fault(body='{"choices": []}'),
    "a number for text": Fault(body='{"choices": [{"message": {"content": 3}}]}'),
    "truncated": Fault(body=completion("8 9"), missing_bytes=100),
    "not gzip": Fault(headers={**HEADERS, "Content-Encoding": "gzip"}, body="plain"),
}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.shutdown()
    server.server_close()


def connect(server: JudgeServer, **changes: float) -> Endpoint:
    settings = {"timeout_s": 0.4, "max_tries": 4, "backoff_s": 0.02, "max_wait_s": 5, **changes}
    return Endpoint(base_url=server.url, api_key=KEY, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_is_tried_again(server: JudgeServer, name: str) -> None:
    server.script = lambda _user, index: FAULTS[name] if index < 2 else None
    assert connect(server).ask(REQUEST).finish_reason == "stop"
    assert len(server.received) == 3
    (first, *_) = server.received
    assert first.body == REQUEST
    assert first.authorization == f"Bearer {KEY}"


@pytest.mark.parametrize("name", ["500", "truncated", "broken JSON"])
def test_a_request_fails_for_good_after_the_last_try(server: JudgeServer, name: str) -> None:
    server.script = lambda _user, _index: FAULTS[name]
    with pytest.raises(RequestError):
        connect(server).ask(REQUEST)
    assert len(server.received) == 4


def test_a_request_that_is_refused_for_what_it_holds_is_not_repeated(server: JudgeServer) -> None:
    server.script = lambda _user, _index: Fault(400, '{"error": {"message": "too long {key}"}}')
    with pytest.raises(RequestError, match=r"HTTP 400 - .*too long") as error:
        connect(server).ask(REQUEST)
    assert len(server.received) == 1
    assert KEY not in str(error.value)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_settings_end_the_run_and_hide_the_key(server: JudgeServer, status: int) -> None:
    body = json.dumps({"error": {"message": f"wrong key {KEY}"}})
    server.script = lambda _user, _index: Fault(status, body)
    with pytest.raises(UserError, match="wrong key") as error:
        connect(server).ask(REQUEST)
    assert len(server.received) == 1
    assert KEY not in str(error.value)


def test_waits_grow(server: JudgeServer) -> None:
    server.script = lambda _user, index: FAULTS["500"] if index < 2 else None
    connect(server, backoff_s=0.2).ask(REQUEST)
    times = [request.at for request in server.received]
    waits = [later - sooner for sooner, later in pairwise(times)]
    assert 0.1 <= waits[0] < 0.35
    assert 0.2 <= waits[1] < 0.55


def test_retry_after_is_obeyed_as_a_date(server: JudgeServer) -> None:
    date = email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    server.script = lambda _user, index: (
        None if index else Fault(503, ERROR, {**HEADERS, "Retry-After": date})
    )
    connect(server).ask(REQUEST)
    assert 0.9 <= server.received[1].at - server.received[0].at < 2.5


def test_too_long_a_pause_ends_the_run(server: JudgeServer) -> None:
    server.script = lambda _user, _index: Fault(429, ERROR, {**HEADERS, "Retry-After": "86400"})
    with pytest.raises(UserError, match=r"86400 s.*judge.max_wait_s=5.*later"):
        connect(server).ask(REQUEST)


def test_nobody_listens(server: JudgeServer) -> None:
    endpoint = connect(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(RequestError, match="no connection"):
        endpoint.ask(REQUEST)


def shipped_requests(**changes: str) -> PairRequests:
    settings = compose().judge
    prompt = {**asdict(settings.prompt), **changes}
    return PairRequests(model="m", parameters=settings.parameters, **prompt)


def test_the_prompt_shows_both_orders_the_input_and_assistant_1_first() -> None:
    pair = read_pairs(FIRST, SECOND)[2]
    in_order, reverse = shipped_requests().build(pair)
    assert in_order["temperature"] == 0
    assert [message["role"] for message in in_order["messages"]] == ["system", "user"]
    for request, answers in ((in_order, pair[-2:]), (reverse, pair[:-3:-1])):
        text = request["messages"][1]["content"]
        parts = [pair.question, pair.input, "1's Answer]", answers[0], "2's Answer]", answers[1]]
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
        assert "separated by a space" in text[places[-1] :]


@pytest.mark.parametrize(
    "changes", [{"user": "{question} {answer_1}"}, {"question_with_input": "{question} {x}"}]
)
def test_a_prompt_that_lacks_a_field_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"judge.prompt"):
        shipped_requests(**changes)


def many_pairs(count: int) -> list[Pair]:
    return [Pair("t", str(n), None, f"question {n}", "", "one two", "one") for n in range(count)]


def test_requests_run_side_by_side_up_to_the_limit(server: JudgeServer, tmp_path: Path) -> None:
    server.script = lambda _user, _index: None
    server.reply_delay_s = 0.05
    pairs = many_pairs(12)
    judgements, failures = judge(
        tmp_path, pairs, shipped_requests(), connect(server), concurrency=3
    )
    assert server.max_under_way == 3
    assert decide(judgements)["verdict"].to_list() == ["win"] * 12
    assert not failures


def test_a_pause_that_the_server_asks_for_holds_every_thread(
    server: JudgeServer, tmp_path: Path
) -> None:
    busy = Fault(429, ERROR, {**HEADERS, "Retry-After": "1"})
    faults = iter([busy])
    server.script = lambda _user, _index: next(faults, None)
    server.reply_delay_s = 0.05
    judge(tmp_path, many_pairs(12), shipped_requests(), connect(server), concurrency=3)
    first, *later = sorted(request.at for request in server.received)
    assert len(later) == 24
    # Those that were under way, or just about to be, may still arrive.
    assert sum(at - first < 0.9 for at in later) <= 4


def test_a_failed_request_is_counted_and_asked_again_and_nothing_else_is(
    server: JudgeServer, tmp_path: Path
) -> None:
    bad = "question 3\n"
    server.script = lambda user, index: Fault(400, ERROR) if bad in user and index < 1 else None
    pairs = many_pairs(5)
    judgements, failures = judge(
        tmp_path, pairs, shipped_requests(), connect(server), concurrency=2
    )
    assert decide(judgements)["verdict"].to_list() == ["win"] * 3 + ["failed", "win"]
    assert failures == {"HTTP 400 - no": 2}
    judgements, failures = judge(
        tmp_path, pairs, shipped_requests(), connect(server), concurrency=2
    )
    assert decide(judgements)["verdict"].to_list() == ["win"] * 5
    assert not failures
    assert set(server.replied.values()) == {1}
    assert len(server.received) == 12


def test_an_endpoint_that_is_down_ends_the_run_early(server: JudgeServer, tmp_path: Path) -> None:
    server.script = lambda _user, _index: FAULTS["500"]
    endpoint = connect(server, max_tries=1)
    with pytest.raises(UserError, match=r"none of 4 requests has a reply; first: HTTP 500"):
        judge(tmp_path, many_pairs(2), shipped_requests(), endpoint, concurrency=2)
    with pytest.raises(UserError, match=r"20 requests failed one after another.*HTTP 500"):
        judge(tmp_path, many_pairs(50), shipped_requests(), endpoint, concurrency=2)
    assert len(server.received) < 30


def test_refusals_one_after_another_say_nothing_about_the_next_request(
    server: JudgeServer, tmp_path: Path
) -> None:
    good = ("question 30\n", "question 31\n")
    server.script = lambda user, _index: None if any(q in user for q in good) else Fault(400, ERROR)
    judgements, failures = judge(
        tmp_path, many_pairs(32), shipped_requests(), connect(server), concurrency=1
    )
    assert failures == {"HTTP 400 - no": 60}
    assert decide(judgements)["verdict"].to_list() == ["failed"] * 30 + ["win"] * 2


def test_one_fatal_refusal_ends_the_waits_of_the_others(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.script = lambda user, _index: Fault(401 if "question 1\n" in user else 500, ERROR)
    started = time.monotonic()
    endpoint = connect(server, backoff_s=30)
    with pytest.raises(UserError, match="HTTP 401"):
        judge(tmp_path, many_pairs(3), shipped_requests(), endpoint, concurrency=6)
    assert time.monotonic() - started < 5


def test_replies_are_kept_and_a_torn_last_line_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    kept = {"a": Reply("8 9\nüber\u2028", "stop", "m"), "b": Reply("")}
    with Replies(path) as replies:
        for name, reply in kept.items():
            replies.add(name, reply)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Replies(path) as replies:
            assert replies.get("a") == kept["a"]
            # All but the line's end is all of the reply.
            assert replies.get("b") == (kept["b"] if cut >= len(whole) - 1 else None)
            replies.add("c", Reply("1 2"))
        with Replies(path) as replies:
            assert [replies.get(name) for name in "ac"] == [kept["a"], Reply("1 2")]
    path.write_bytes(b'{"request": \n' + whole)
    with pytest.raises(UserError, match="line 1"):
        Replies(path)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Replies(path) as replies:
        replies.add("a", Reply("8 9"))
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                replies.add("b", Reply("8 9"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        assert replies.get("b") is None
        replies.add("c", Reply("8 9"))
    assert path.read_bytes().count(b"\n") == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, server: JudgeServer) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"openai.*cherry-vllm\[judge\]"):
        connect(server)


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    assert read_api_key("SOME_KEY") == KEY
    assert read_api_key(None) is None
    monkeypatch.setenv("SOME_KEY", "sk \u00fc")
    for name in ("SOME_KEY", "NO_SUCH_KEY", KEY):
        with pytest.raises(UserError) as error:
            read_api_key(name)
        assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/v1", "http://", "http://u:pw@x", "http://[x"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"judge.base_url") as error:
        Endpoint(base_url=url, api_key=None, timeout_s=1, max_tries=1, backoff_s=1, max_wait_s=1)
    assert "pw" not in str(error.value)
