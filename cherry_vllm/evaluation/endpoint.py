"""An OpenAI-compatible chat endpoint, asked until it answers or the request has failed for good."""

import email.utils
import json
import logging
import math
import os
import random
import re
import time
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.replies import Reply

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 60
MAX_REASON_CHARS = 300
MAX_FAULTS_SHOWN = 3
SETTINGS_STATUS = (401, 403, 404)  # the key, the model or the URL: no other request would pass
PASSING_STATUS = (408, 409, 425, 429)  # and 500 upwards
VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
NO_KEY = "none"  # the client sends one in any case


class RequestError(Exception):
    """A request without an answer after every try; the message is the reason."""


class RefusedError(RequestError):
    """A request refused for what it holds: others may well pass."""


class StoppedError(Exception):
    """The endpoint was stopped while the request waited."""


class _PassingError(Exception):
    """A fault that another try may not meet."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Endpoint:
    """One endpoint for many threads; a pause that it asks for holds all of them."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        max_tries: int,
        backoff_s: float,
        max_wait_s: float,
    ) -> None:
        """``backoff_s`` is the wait after the first fault, which doubles with each further one.

        Raises:
            UserError: the package ``openai`` is missing, or the URL is not one to use.
        """
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError("judge: openai is missing; install cherry-vllm[judge]") from None
        _check_url(base_url)
        self._client: Any = OpenAI(
            base_url=base_url, api_key=api_key or NO_KEY, timeout=timeout_s, max_retries=0
        )
        self._api_key = api_key
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._max_tries = max_tries
        self._backoff_s = backoff_s
        self._max_wait_s = max_wait_s
        self._lock = Lock()
        self._resume_at = 0.0  # on the monotonic clock
        self._stopped = Event()
        self._num_faults = 0

    def ask(self, request: Request) -> Reply:
        """Sends the request until a reply comes.

        Raises:
            RequestError: every try met a fault.
            RefusedError: the endpoint does not take what it holds.
            UserError: the key, the model or the URL is refused, or too long a pause asked for.
            StoppedError: :meth:`stop` was called while it waited.
        """
        backoff_s = self._backoff_s
        for num_left in reversed(range(self._max_tries)):
            self._wait_for_turn()
            try:
                return self._post(request)
            except _PassingError as fault:
                self._show(fault)
                self._hold_all(fault)
                if not num_left:
                    raise RequestError(str(fault)) from None
            self._sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        raise ValueError("max_tries must be at least 1")

    def stop(self) -> None:
        """Ends all waiting; requests under way still get their reply."""
        self._stopped.set()

    def _post(self, request: Request) -> Reply:
        import openai

        body = {key: value for key, value in request.items() if key not in ("model", "messages")}
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=request["model"], messages=request["messages"], extra_body=body
            )
        except openai.APITimeoutError:
            raise _PassingError(f"no answer within {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise _PassingError(self._reason(f"no connection: {error.__cause__}")) from None
        except openai.APIStatusError as error:
            raise self._status_fault(error) from None
        return _read_reply(response.text)

    def _status_fault(self, error: Any) -> Exception:
        status = error.status_code
        reason = self._reason(error.message.replace("Error code:", "HTTP", 1))
        if status in SETTINGS_STATUS:
            return UserError(
                f"{self._base_url}: {reason}; check judge.base_url, judge.model and the key in "
                "the variable that judge.api_key_env names"
            )
        if status not in PASSING_STATUS and status < 500:
            return RefusedError(reason)
        # The server's words vary from try to try; status and code can be counted.
        code = f" ({error.code})" if error.code else ""
        reason = self._reason(f"HTTP {status}{code}")
        return _PassingError(reason, _read_retry_after(error.response.headers))

    def _show(self, fault: _PassingError) -> None:
        with self._lock:
            self._num_faults += 1
            num_faults = self._num_faults
        if num_faults <= MAX_FAULTS_SHOWN:
            last = "; further ones are not shown" if num_faults == MAX_FAULTS_SHOWN else ""
            log.warning("%s: %s; trying again%s", self._base_url, fault, last)

    def _reason(self, text: str) -> str:
        """One short line without the key, which a server may have repeated."""
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        return " ".join(text.split())[:MAX_REASON_CHARS]

    def _hold_all(self, fault: _PassingError) -> None:
        """Holds every thread for the pause that the endpoint asks for, if it does."""
        if fault.retry_after_s is None:
            return
        if fault.retry_after_s > self._max_wait_s:
            raise UserError(
                f"{self._base_url}: {fault}, and asks for a pause of {fault.retry_after_s:.0f} s, "
                f"longer than judge.max_wait_s={self._max_wait_s:g}; run the same command later"
            )
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + fault.retry_after_s)

    def _wait_for_turn(self) -> None:
        while (left_s := self._resume_at - time.monotonic()) > 0:
            # Spread out, so that the threads do not come back as one burst.
            self._sleep(left_s + random.uniform(0, self._backoff_s))  # noqa: S311

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise StoppedError


def read_api_key(variable: str | None) -> str | None:
    """The key in an environment variable; None where no variable is named.

    Raises:
        UserError: the variable is not set, or holds what no HTTP header can carry.
    """
    if variable is None:
        return None
    if not VARIABLE_NAME.fullmatch(variable):  # perhaps the key itself: not repeated
        raise UserError(
            "judge.api_key_env: give the name of an environment variable, in capitals, not the key"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{variable}: the environment variable is not set; export the endpoint's key in it, "
            "or set judge.api_key_env=null for an endpoint without one"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{variable}: holds characters that no key has; export it anew")
    return key


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_secret = parts.username is not None or bool(parts.query)
        _ = parts.port
    except ValueError:
        is_usable, is_secret = False, False
    if is_secret:  # not repeated: it may hold a password
        raise UserError("judge.base_url: holds a user name or a query; pass keys by api_key_env")
    if not is_usable:
        raise UserError(f"judge.base_url={url}: give a URL such as http://localhost:8000/v1")


def _read_reply(content: str) -> Reply:
    """The first choice of a chat completion; anything else is a fault of the server."""
    try:
        completion = json.loads(content)
        choice = completion["choices"][0]
        text = choice["message"]["content"]
        model, finish_reason = completion.get("model"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _PassingError("the answer is no chat completion") from None
    if not isinstance(text, str | None):
        raise _PassingError("the answer is no chat completion")
    return Reply(
        text or "",
        finish_reason if isinstance(finish_reason, str) else None,
        model if isinstance(model, str) else None,
    )


def _read_retry_after(headers: Any) -> float | None:
    """Seconds to wait, from either form of the header; None without a usable one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
