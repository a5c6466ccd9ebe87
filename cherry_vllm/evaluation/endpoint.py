"""An OpenAI-compatible chat endpoint, asked through the ``openai`` client.

The library retries, backs off and obeys Retry-After. This module and the two that use it add what
it lacks: a deadline for a whole try (:mod:`runtime.deadline`), the end of a run that an endpoint
refuses or that meets only failures, and the end of all requests on a signal (:mod:`requests`).
"""

import json
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.prompts import Request
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.runtime.endpoints import (
    NO_KEY,
    RETRIED_STATUS,
    as_reason,
    check_url,
    read_api_key,
)

if TYPE_CHECKING:
    from openai import APIStatusError

SETTINGS_STATUS = (401, 403, 404)  # the key, the model or the URL is wrong: every request fails
FORMAT_WORDS = ("response_format", "json_schema", "structured")


class RequestError(Exception):
    """A request has no reply after all tries; the message is the reason."""


class RefusedRequestError(RequestError):
    """A request was refused for its contents: others may succeed."""


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where the judge is and how patiently it is asked."""

    base_url: str
    api_key_env: str | None  # the variable that holds the key; None: the endpoint needs none
    concurrency: int  # requests in flight
    timeout_s: float  # of one try, from its start to the last byte of the reply
    max_tries: int  # of one request


class Endpoint:
    """An endpoint that takes many requests at once, inside an ``async with`` block."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Checks the settings and reads the key; does not connect yet.

        Raises:
            UserError: the package ``openai`` is missing, or the URL or the key cannot be used.
        """
        try:
            import openai
        except ImportError:
            raise UserError("judge: openai is missing; install cherry-vllm[judge]") from None
        self._openai = openai
        self._api_key = read_api_key(settings.api_key_env, "judge")
        self._settings = settings
        self.address = check_url(settings.base_url, "judge")
        self.concurrency = settings.concurrency

    async def __aenter__(self) -> Self:
        from cherry_vllm.runtime.deadline import DeadlineClient

        timeout_s = self._settings.timeout_s
        self._client = self._openai.AsyncOpenAI(
            base_url=self.address,
            api_key=self._api_key or NO_KEY,
            max_retries=self._settings.max_tries - 1,
            timeout=timeout_s,
            http_client=DeadlineClient(timeout_s),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Reply:
        """The endpoint's reply, which is never empty.

        Raises:
            RequestError: every try failed, or the reply is empty.
            RefusedRequestError: the endpoint refuses the request's contents.
            UserError: the endpoint refuses the key, the model, the URL or the response format.
        """
        body = {key: value for key, value in request.items() if key not in ("model", "messages")}
        try:
            response = await self._client.chat.completions.with_raw_response.create(
                model=request["model"], messages=request["messages"], extra_body=body
            )
        except self._openai.APITimeoutError:
            raise RequestError(f"no reply within {self._settings.timeout_s:g} s") from None
        except self._openai.APIConnectionError as error:
            raise RequestError(self._reason(f"no connection: {error.__cause__}")) from None
        except self._openai.APIStatusError as error:
            raise self._status_error(error, request) from None
        return _read_reply(response.text)

    def _status_error(self, error: "APIStatusError", request: Request) -> Exception:
        status = error.status_code
        reason = self._reason(error.message.replace("Error code:", "HTTP", 1))
        if status in SETTINGS_STATUS:
            return UserError(
                f"{self.address}: {reason}; check judge.base_url, judge.model and the key in "
                "the variable that judge.api_key_env names"
            )
        if status < 500 and "response_format" in request and _names_any(reason, FORMAT_WORDS):
            return UserError(
                f"{self.address}: {reason}; set judge.response_format=text if the endpoint has no "
                "structured outputs"
            )
        if status < 500 and status not in RETRIED_STATUS:
            return RefusedRequestError(reason)
        # The server's words vary from request to request; status and code can be counted.
        code = f" ({error.code})" if error.code else ""
        pause = error.response.headers.get("retry-after")
        return RequestError(
            self._reason(f"HTTP {status}{code}{f', retry after {pause}' if pause else ''}")
        )

    def _reason(self, text: str) -> str:
        return as_reason(text, self._api_key)


def _read_reply(content: str) -> Reply:
    """The first choice of a chat completion."""
    try:
        completion = json.loads(content)
        choice = completion["choices"][0]
        text = choice["message"]["content"]
        model, finish_reason = completion.get("model"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise RequestError("the response is not a chat completion") from None
    if not isinstance(text, str | None):
        raise RequestError("the response is not a chat completion")
    if not (text or "").strip():
        raise RequestError(f"empty reply (finish_reason {finish_reason})")
    return Reply(
        str(text),
        finish_reason if isinstance(finish_reason, str) else None,
        model if isinstance(model, str) else None,
    )


def _names_any(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text.casefold() for word in words)
