"""The endpoint against a server that fails in every way the network knows, then answers."""

import asyncio
import email.utils
import json
import logging
import sys
import time

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.endpoint import (
    Endpoint,
    EndpointSettings,
    RefusedRequestError,
    RequestError,
)
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.runtime.endpoints import read_api_key
from tests.judge_server import HEADERS, Fault, JudgeServer, completion
from tests.judging import KEY, endpoint_settings

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
ERROR = '{"error": {"message": "no", "code": "full"}}'
SOON = {**HEADERS, "Retry-After": "0.05"}
PASSING = {
    "429": Fault(429, ERROR, SOON),
    "500": Fault(500, "oops", {**SOON, "Content-Type": "text/plain"}),
    "503": Fault(503, ERROR, SOON),
    "408": Fault(408, ERROR, SOON),
    "timeout": Fault(delay_s=0.6),
    "dripping": Fault(body=completion("8 9"), drip_s=0.05),
    "truncated": Fault(body=completion("8 9"), missing_bytes=100),
    "not gzip": Fault(headers={**HEADERS, "Content-Encoding": "gzip"}, body="plain"),
}
NO_COMPLETION = {
    "HTML instead of JSON": Fault(body="<html>", headers={"Content-Type": "text/html"}),
    "broken JSON": Fault(body='{"choices": [{"mess'),
    "JSON of another form": Fault(body='{"error": "busy"}'),
    "no choice": Fault(body='{"choices": []}'),
    "a number for text": Fault(body='{"choices": [{"message": {"content": 3}}]}'),
}


def ask(settings: EndpointSettings, request: Request = REQUEST) -> Reply:
    async def run() -> Reply:
        async with Endpoint(settings) as endpoint:
            return await endpoint.ask(request)

    return asyncio.run(run())


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_error_is_retried(judge_server: JudgeServer, name: str) -> None:
    judge_server.script = lambda _user, index: (
        PASSING[name] if index < 1 else Fault(body=completion("8 9"))
    )
    assert ask(endpoint_settings(judge_server.url)) == Reply("8 9", "stop", "m")
    assert len(judge_server.received) == 2
    (first, _) = judge_server.received
    assert first.body == REQUEST
    assert first.authorization == f"Bearer {KEY}"


@pytest.mark.parametrize("name", ["500", "truncated"])
def test_a_request_fails_after_the_last_try(judge_server: JudgeServer, name: str) -> None:
    judge_server.script = lambda _user, _index: PASSING[name]
    with pytest.raises(RequestError):
        ask(endpoint_settings(judge_server.url, max_tries=2))
    assert len(judge_server.received) == 2


def test_a_server_that_drips_cannot_hold_a_try_longer_than_timeout_s(
    judge_server: JudgeServer,
) -> None:
    """Each pause between two bytes is far shorter than the timeout; all together take 10 s."""
    judge_server.script = lambda _user, _index: Fault(body=completion("8 9" * 30), drip_s=0.05)
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"no reply within 0\.5 s"):
        ask(endpoint_settings(judge_server.url, timeout_s=0.5, max_tries=1))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("name", NO_COMPLETION)
def test_what_is_not_a_chat_completion_fails(judge_server: JudgeServer, name: str) -> None:
    judge_server.script = lambda _user, _index: NO_COMPLETION[name]
    with pytest.raises(RequestError, match="not a chat completion"):
        ask(endpoint_settings(judge_server.url))


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_empty_reply_is_a_failure_with_its_finish_reason(
    judge_server: JudgeServer, text: str | None
) -> None:
    judge_server.script = lambda _user, _index: Fault(body=completion(text, "length"))
    with pytest.raises(RequestError, match=r"empty reply \(finish_reason length\)"):
        ask(endpoint_settings(judge_server.url))


def test_a_request_that_is_refused_for_what_it_holds_is_not_repeated(
    judge_server: JudgeServer,
) -> None:
    body = '{"error": {"message": "too long\\u001b[2J {key}"}}'
    judge_server.script = lambda _user, _index: Fault(400, body)
    with pytest.raises(RefusedRequestError, match=r"HTTP 400 - .*too long") as error:
        ask(endpoint_settings(judge_server.url))
    assert len(judge_server.received) == 1
    assert KEY not in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_settings_end_the_run_and_hide_the_key(
    judge_server: JudgeServer, status: int
) -> None:
    body = json.dumps({"error": {"message": f"wrong key {KEY}"}})
    judge_server.script = lambda _user, _index: Fault(status, body)
    with pytest.raises(UserError, match="wrong key") as error:
        ask(endpoint_settings(judge_server.url))
    assert len(judge_server.received) == 1
    assert KEY not in str(error.value)


def test_an_endpoint_without_structured_outputs_is_told_apart(judge_server: JudgeServer) -> None:
    body = json.dumps({"error": {"message": "This response_format type is unavailable now"}})
    judge_server.script = lambda _user, _index: Fault(400, body)
    held = {**REQUEST, "response_format": {"type": "json_schema"}}
    with pytest.raises(UserError, match=r"judge\.response_format=text"):
        ask(endpoint_settings(judge_server.url), held)
    with pytest.raises(RefusedRequestError):
        ask(endpoint_settings(judge_server.url))


def test_retry_after_is_obeyed_as_a_date(judge_server: JudgeServer) -> None:
    date = email.utils.formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    judge_server.script = lambda _user, index: (
        Fault(body=completion("8 9"))
        if index
        else Fault(503, ERROR, {**HEADERS, "Retry-After": date})
    )
    ask(endpoint_settings(judge_server.url))
    first, second = (request.at for request in judge_server.received)
    assert 0.9 <= second - first < 2.5


def test_a_pause_of_a_day_is_not_waited_for_but_named(judge_server: JudgeServer) -> None:
    judge_server.script = lambda _user, _index: Fault(
        429, ERROR, {**HEADERS, "Retry-After": "86400"}
    )
    with pytest.raises(RequestError, match=r"HTTP 429 \(full\), retry after 86400"):
        ask(endpoint_settings(judge_server.url))
    assert len(judge_server.received) == 1


def test_the_first_error_is_logged_while_the_client_retries(
    judge_server: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    judge_server.script = lambda _user, index: (
        PASSING["503"] if index < 2 else Fault(body=completion("8 9"))
    )
    with caplog.at_level(logging.WARNING, logger="cherry_vllm"):
        ask(endpoint_settings(judge_server.url))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "HTTP 503" in line


def test_nobody_listens(judge_server: JudgeServer) -> None:
    judge_server.shutdown()
    judge_server.server_close()
    with pytest.raises(RequestError, match="no connection"):
        ask(endpoint_settings(judge_server.url, max_tries=1))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"openai.*cherry-vllm\[judge\]"):
        Endpoint(endpoint_settings("http://localhost/v1"))


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    assert read_api_key("SOME_KEY", "judge") == KEY
    assert read_api_key(None, "judge") is None
    monkeypatch.setenv("SOME_KEY", "sk \u00fc")
    for name in ("SOME_KEY", "NO_SUCH_KEY", KEY):
        with pytest.raises(UserError) as error:
            read_api_key(name, "judge")
        assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/v1", "http://", "http://u:pw@x", "http://[x"])
def test_a_url_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with pytest.raises(UserError, match=r"judge.base_url") as error:
        Endpoint(endpoint_settings(url))
    assert "pw" not in str(error.value)
