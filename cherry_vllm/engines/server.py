"""One vLLM server, asked through the ``openai`` client: token ids in, log-probs or tokens out.

The library retries, backs off and obeys Retry-After. Log-probs come in one of two ways: ``prompt``
gives those of all tokens as JSON (``/v1/completions``), ``chosen`` only those of answers, as an
array (``/inference/v1/generate``, which needs ``--enable-scale-out`` and vLLM's V2 model runner).
"""

import asyncio
import io
import logging
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cherry_vllm.engines import Span
from cherry_vllm.engines.settings import ServerSettings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.endpoints import (
    NO_KEY,
    RETRIED_STATUS,
    as_reason,
    check_url,
    read_api_key,
)

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

PASSING_STATUS = (*RETRIED_STATUS, 502, 503, 504)  # of a server or a proxy, whatever the request
CONNECT_S = 10.0
CLAMPED = -9999.0  # stands for minus infinity in vLLM's JSON
NOT_A_NUMBER = "not JSON compliant"  # in the reason for which vLLM refuses to write NaN
LEAST_TOP = -20.0  # below the log-prob of the likeliest token of any vocabulary: that of 1 in 5e8


class ServerDownError(Exception):
    """A server gives no answer after all tries; the message says why."""


class ServerRefusedError(Exception):
    """A server refuses a request, or does not answer as vLLM does."""


class Server:
    """A server that takes many requests at once, inside an ``async with`` block."""

    def __init__(
        self, settings: ServerSettings, url: str, num_tokens: int, ways: dict[str, str]
    ) -> None:
        """Does not connect yet.

        ``num_tokens`` is the length that the server must take; ``ways`` is how log-probs are asked
        for ("prompt" or "chosen"), by URL, and is completed here.

        Raises:
            UserError: the package ``openai`` is missing, or the URL or the key cannot be used.
        """
        self.url = check_url(url, "engine").removesuffix("/v1").rstrip("/")
        self.configurations: set[str] = set()  # as the answers name them
        self.is_ready = False  # it answers, and holds the right model
        self.is_down = False  # it was checked, and does not
        self.checking, self.waiting = asyncio.Lock(), asyncio.Lock()
        self._settings, self._num_tokens, self._ways = settings, num_tokens, ways
        self._api_key = read_api_key(settings.api_key_env, "engine")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connects as requests come, and closes all connections at the end."""
        try:
            import httpx2
            import openai
        except ImportError:
            raise UserError(
                "engine=vllm_server: openai is missing; install cherry-vllm[server]"
            ) from None
        from cherry_vllm.runtime.deadline import DeadlineClient

        timeout_s = self._settings.timeout_s
        self._openai, self._response = openai, httpx2.Response
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key=self._api_key or NO_KEY,
            max_retries=self._settings.max_tries - 1,
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            http_client=DeadlineClient(timeout_s, is_silent=True),  # the caller reports faults
        ) as self._client:
            yield

    async def probe(self, token_ids: Sequence[int]) -> Floats:
        """Checks what the server serves; returns the log-probs of all tokens but the first.

        Raises:
            UserError: it serves another model, takes too few tokens, or gives no log-probs.
            ServerDownError: it does not answer.
            ServerRefusedError: it refuses a request.
        """
        self._check_card(await self._ask("models", None))
        span = Span.from_start(list(token_ids), 1)
        reply = await self._complete(span.token_ids, prompt_logprobs=1)
        self._check_scale(reply)
        by_prompt = read_prompt_logprobs(span, reply)
        if self.url not in self._ways:
            self._ways[self.url] = await self._find_way(span, by_prompt)
        return by_prompt if self._ways[self.url] == "prompt" else await self._score_chosen(span)

    async def encode(self, text: str) -> list[int] | None:
        """The server's token ids of a text, without special tokens; None if it does not say."""
        try:
            reply = await self._complete(text, add_special_tokens=False, return_token_ids=True)
        except ServerRefusedError:  # a server without a tokenizer, or for shorter texts
            return None
        return reply["choices"][0].get("prompt_token_ids")  # type: ignore[no-any-return]

    async def logprobs(self, span: Span) -> Floats:
        """See :meth:`engines.Engine.logprobs`; raises as :meth:`probe` does."""
        if self._ways[self.url] == "chosen":
            return await self._score_chosen(span)
        try:
            reply = await self._complete(span.token_ids, prompt_logprobs=0)
        except ServerRefusedError as refusal:
            if NOT_A_NUMBER in str(refusal):
                return np.full(span.num_answer_tokens, np.nan, np.float32)
            raise
        return read_prompt_logprobs(span, reply)

    async def generate(self, prompt: list[int], parameters: dict[str, Any]) -> list[int]:
        """The token ids that follow a prompt; raises as :meth:`probe` does."""
        reply = await self._complete(prompt, return_token_ids=True, **parameters)
        choice = reply["choices"][0]
        found = choice.get("token_ids")
        if choice.get("prompt_token_ids") != prompt or not isinstance(found, list):
            raise ServerRefusedError("returned no token ids, or those of another prompt")
        return found

    async def _complete(self, prompt: list[int] | str, **parameters: Any) -> dict[str, Any]:
        """A completion, by default of one token, with at least one choice."""
        body = {
            "model": self._settings.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            **parameters,
        }
        reply = await self._ask("completions", body)
        choices = reply.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ServerRefusedError("the reply to a completion has no choices")
        self._note_configuration(reply.get("system_fingerprint"))
        return reply

    async def _score_chosen(self, span: Span) -> Floats:
        start, token_ids = span.start, span.token_ids
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprob_start": start - 1,  # the position that predicts the first answer token
            "prompt_logprob_token_ids": [[token] for token in token_ids[start:]],
        }
        body = {"model": self._settings.model, "token_ids": token_ids, "return_token_ids": True}
        url = f"{self.url}/inference/v1/generate"
        reply = await self._ask(url, {**body, "sampling_params": parameters})
        if reply.get("prompt_token_ids") != token_ids:
            raise ServerRefusedError("returned the log-probs of tokens that were not sent")
        try:
            content = io.BytesIO(b64decode(reply["prompt_token_id_logprobs"]))
            found = np.load(content, allow_pickle=False)[:, 0]
            of_ranges = [found[first - start : stop - start] for first, stop in span.ranges]
        except (KeyError, TypeError, ValueError, IndexError, EOFError):
            found, of_ranges = np.empty(0), []
        if len(found) != len(token_ids) - start:
            raise ServerRefusedError("returned no prompt_token_id_logprobs, or too few")
        floats: Floats = np.concatenate(of_ranges).astype(np.float32)
        return floats

    async def _find_way(self, span: Span, by_prompt: Floats) -> str:
        """How log-probs are asked for: "chosen" where the server offers it and both ways agree."""
        try:
            chosen = await self._score_chosen(span)
        except ServerRefusedError as refusal:
            log.debug("%s: log-probs of whole prompts (%s)", self.url, refusal)
            return "prompt"
        if np.abs(chosen - by_prompt).mean() <= self._settings.tolerance:
            return "chosen"
        log.warning("%s: its two ways to log-probs disagree; those of prompts are used", self.url)
        return "prompt"

    async def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The object in the reply to a POST, or to a GET if there is no body."""
        client: Any = self._client
        options = {"cast_to": self._response}
        try:
            if body:
                response = await client.post(path, body=body, **options)
            else:
                response = await client.get(path, **options)
            reply = response.json()
        except self._openai.APITimeoutError:
            raise ServerDownError(f"no reply within {self._settings.timeout_s:g} s") from None
        except self._openai.APIConnectionError as error:
            raise ServerDownError(self._reason(f"no connection: {error.__cause__}")) from None
        except self._openai.APIStatusError as error:
            kind = ServerDownError if error.status_code in PASSING_STATUS else ServerRefusedError
            raise kind(self._reason(error.message.replace("Error code:", "HTTP", 1))) from None
        except ValueError:
            raise ServerRefusedError("the reply is not JSON") from None
        if not isinstance(reply, dict):
            raise ServerRefusedError("the reply is not a JSON object")
        return reply

    def _check_card(self, reply: dict[str, Any]) -> None:
        """Raises a UserError if the list of models lacks ours, or it takes too few tokens."""
        listed = reply.get("data")
        cards = [card for card in listed or () if isinstance(card, dict)]
        by_name = {str(card.get("id")): card for card in cards}
        model, needed = str(self._settings.model), self._num_tokens
        if model not in by_name:
            raise UserError(
                f"{self.url}: serves {as_reason(', '.join(by_name), None) or 'nothing'}, not "
                f"{model}; give the served name as engine.model"
            )
        card = by_name[model]
        base = by_name.get(str(card.get("parent")), {})  # of a LoRA adapter
        room = card.get("max_model_len") or base.get("max_model_len")
        if isinstance(room, int) and room < needed:
            raise UserError(
                f"{self.url}: takes {room} tokens, but {needed} are needed (max_length, and one "
                f"that it makes); start it with --max-model-len {needed}, or lower max_length"
            )

    def _check_scale(self, reply: dict[str, Any]) -> None:
        """Raises a UserError if what the server gives are not log-probs, but logits for example."""
        entries = reply["choices"][0].get("prompt_logprobs")
        if not isinstance(entries, list):
            raise UserError(
                f"{self.url}: gives no prompt_logprobs; engine=vllm_server needs vLLM's own server"
            )
        try:
            tops = [max(item["logprob"] for item in entry.values()) for entry in entries[1:]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ServerRefusedError("its prompt_logprobs have another form than vLLM's") from None
        if tops and not (min(tops) >= LEAST_TOP and max(tops) <= 0):
            raise UserError(
                f"{self.url}: gives numbers that are not log-probs; start it without "
                "--logprobs-mode"
            )

    def _note_configuration(self, name: Any) -> None:
        """Warns when answers come from servers of different configurations."""
        if isinstance(name, str) and name not in self.configurations:
            self.configurations.add(as_reason(name, self._api_key))
            if len(self.configurations) > 1:
                log.warning(
                    "%s: answers under different configurations (%s); not every answer is "
                    "compared, so make sure that all hold the same model",
                    self.url,
                    ", ".join(sorted(self.configurations)),
                )

    def _reason(self, text: str) -> str:
        return as_reason(text, self._api_key)


@asynccontextmanager
async def open_servers(
    settings: ServerSettings, num_tokens: int, ways: dict[str, str]
) -> AsyncIterator[list[Server]]:
    """All servers of ``engine.base_url``; see :class:`Server` for the arguments."""
    async with AsyncExitStack() as stack:
        servers = [Server(settings, url, num_tokens, ways) for url in settings.urls]
        for server in servers:
            await stack.enter_async_context(server.open())
        yield servers


def read_prompt_logprobs(span: Span, reply: dict[str, Any]) -> Floats:
    """The log-probs of a span's answers in a completion with ``prompt_logprobs``.

    Raises:
        ServerRefusedError: they are missing, or those of other tokens.
    """
    entries = reply["choices"][0].get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) != len(span.token_ids):
        raise ServerRefusedError("returned no prompt_logprobs, or for another number of tokens")
    positions = chain.from_iterable(range(*place) for place in span.ranges)
    try:
        # An object for each token, keyed by its id; none for the first.
        for token, entry in zip(span.token_ids[1:], entries[1:], strict=True):
            _ = entry[str(token)]
        found = [entries[place][str(span.token_ids[place])]["logprob"] for place in positions]
    except (KeyError, TypeError):
        raise ServerRefusedError("returned the log-probs of tokens that were not sent") from None
    floats = np.array(found, np.float32)  # None becomes NaN
    return np.where(floats == CLAMPED, -np.inf, floats)
