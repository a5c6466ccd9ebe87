"""vLLM servers as an engine: one process keeps requests in flight on all of them.

Sequences wait in one queue. A server that gives no answer puts back what it had, and takes more
once it is up again and proves to hold the same model. A sequence that every server refuses while
they answer others is the engine's failure, from which the driver finds the row.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cherry_vllm.engines import Continuation, Decoding, Span, until_stop
from cherry_vllm.engines.served import ServedModel
from cherry_vllm.engines.server import (
    Server,
    ServerDownError,
    ServerRefusedError,
    open_servers,
)
from cherry_vllm.engines.settings import ServerSettings
from cherry_vllm.errors import UserError

log = logging.getLogger(__name__)

BEAT_S = 1.0  # between two signs of life
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 10.0  # between two looks at a server that is down
MAX_LOST = 5  # tries of one sequence that got no answer; each is several requests

Item = TypeVar("Item")
Found = TypeVar("Found")


class ServerModel:
    """The servers, the model that they hold, and the room that a sequence has in it."""

    def __init__(
        self,
        settings: ServerSettings,
        model: ServedModel,
        *,
        max_length: int,
        trust_remote_code: bool,  # noqa: ARG002 - no code runs here
    ) -> None:
        self._settings, self._model, self._max_length = settings, model, max_length
        self._ways: dict[str, str] = {}  # in which each server gives log-probs

    def _ask_all(
        self,
        items: Sequence[Item],
        ask: Callable[[Server, Item], Awaitable[Found]],
        on_done: Callable[[int], None],
        *,
        num_tokens: int,
    ) -> list[Found]:
        """The servers' answer to each item; they must take ``num_tokens`` tokens."""
        call = _Call(self._settings, self._model, items, ask, on_done)
        return asyncio.run(call.run(num_tokens, self._ways))


class ServerEngine(ServerModel):
    """Scores with ``prompt_logprobs``, or the log-probs of chosen tokens, of servers."""

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`; the same spans give nearly the same floats."""
        # Room for a prompt, and for the token that a completion makes.
        num_tokens = self._max_length + 1
        return self._ask_all(spans, Server.logprobs, on_scored, num_tokens=num_tokens)


class ServerGenerator(ServerModel):
    def __init__(
        self,
        settings: ServerSettings,
        model: ServedModel,
        *,
        max_length: int,
        trust_remote_code: bool,
        decoding: Decoding,
        stop_ids: Sequence[int],
    ) -> None:
        limits: Any = {"max_length": max_length, "trust_remote_code": trust_remote_code}
        super().__init__(settings, model, **limits)
        self._decoding, self._stop_ids = decoding, list(stop_ids)

    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""

        async def ask(server: Server, place: int) -> Continuation:
            prompt = prompts[place]
            limit = self._decoding.limit(prompt, self._max_length)
            found = await server.generate(prompt, self._parameters(limit, seed + place))
            return until_stop(found, limit, self._stop_ids)

        places = range(len(prompts))
        return self._ask_all(places, ask, on_answered, num_tokens=self._max_length)

    def _parameters(self, limit: int, seed: int) -> dict[str, Any]:
        """Every parameter that the server's own defaults would fill in."""
        return {
            "max_tokens": limit,
            "temperature": self._decoding.temperature,
            "top_p": self._decoding.top_p,
            "top_k": self._decoding.top_k,
            "min_p": 0,
            "repetition_penalty": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "seed": seed,
            "stop_token_ids": self._stop_ids,
        }


class _Call(Generic[Item, Found]):
    """One call of the engine: all its items through all servers."""

    def __init__(
        self,
        settings: ServerSettings,
        model: ServedModel,
        items: Sequence[Item],
        ask: Callable[[Server, Item], Awaitable[Found]],
        on_done: Callable[[int], None],
    ) -> None:
        self._settings, self._model, self._items = settings, model, items
        self._ask, self._on_done = ask, on_done
        self._found: dict[int, Found] = {}
        self._lost = Counter[int]()
        self._down_since: float | None = None  # all servers

    async def run(self, num_tokens: int, ways: dict[str, str]) -> list[Found]:
        """The answer to each item; see :class:`engines.server.Server` for the arguments.

        Raises:
            UserError: a server holds another model, or none answers for ``engine.patience_s``.
            RuntimeError: all servers refuse an item.
        """
        if not self._items:
            return []
        self._queue = asyncio.Queue[int]()
        for index in range(len(self._items)):
            self._queue.put_nowait(index)
        async with open_servers(self._settings, num_tokens, ways) as self._servers:
            # Else the server that is checked first would take all items of a small call.
            share = -(-len(self._items) // len(self._servers))
            in_flight = range(min(self._settings.concurrency, share))
            works = [self._work(server) for server in self._servers for _ in in_flight]
            await _until_first(self._queue.join(), self._beat(), *works)
            await _until_first(self._check_again(), self._beat())
        return [self._found[index] for index in range(len(self._items))]

    async def _work(self, server: Server) -> None:
        """One of the requests that a server has in flight, again and again."""
        while True:
            await self._wait_for(server)
            index = await self._queue.get()
            try:
                self._found[index] = await self._answer(server, self._items[index])
            except ServerDownError as fault:
                self._put_back(index, server, fault)
            else:
                self._on_done(1)
            self._queue.task_done()

    async def _wait_for(self, server: Server) -> None:
        """Returns once the server answers and proves to hold the right model."""
        pause = FIRST_PAUSE_S
        async with server.waiting:
            while not server.is_ready:
                try:
                    await self._meet(server)
                except ServerDownError as fault:
                    if pause == FIRST_PAUSE_S:
                        log.warning("%s: %s; its work goes to the others", server.url, fault)
                    self._give_up_in_time(server, fault)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LAST_PAUSE_S)

    async def _answer(self, server: Server, item: Item) -> Found:
        """The server's answer, or another's if it refuses the item.

        Raises:
            ServerDownError: the server does not answer.
            RuntimeError: all servers that are up refuse the item.
        """
        try:
            return await self._ask_one(server, item)
        except ServerRefusedError as reason:
            refusal = f"{server.url} refuses a sequence: {reason}"
        for other in self._servers:
            if other is not server and not other.is_down:
                with suppress(ServerRefusedError, ServerDownError):
                    await self._meet(other)
                    return await self._ask_one(other, item)
        raise RuntimeError(refusal)

    async def _ask_one(self, server: Server, item: Item) -> Found:
        """The server's answer; a refusal counts only if the server is in order."""
        try:
            return await self._ask(server, item)
        except ServerRefusedError:
            await self._check(server)
            raise
        except ServerDownError:
            server.is_ready = False
            raise

    async def _meet(self, server: Server) -> None:
        """Checks the server unless it is known to be in order; raises as :meth:`_check` does."""
        async with server.checking:
            if not server.is_ready:
                await self._check(server)
                server.is_ready, self._down_since = True, None

    async def _check(self, server: Server) -> None:
        """Compares the server's model with the run's.

        Raises:
            UserError: it is another.
            ServerDownError: the server does not answer, or not as it should.
        """
        try:
            found = await server.probe(self._model.probe)
        except (ServerRefusedError, ServerDownError) as fault:
            server.is_ready, server.is_down = False, True
            raise ServerDownError(str(fault)) from None
        server.is_down = False
        self._model.compare(server.url, found, "the one this run began with")

    async def _check_again(self) -> None:
        """So that a server that was restarted with another model meanwhile is noticed."""
        for server in self._servers:
            if server.is_ready:
                try:
                    await self._check(server)
                except ServerDownError as fault:
                    log.warning("%s: %s", server.url, fault)

    def _put_back(self, index: int, server: Server, fault: ServerDownError) -> None:
        self._queue.put_nowait(index)
        self._lost[index] += 1
        if self._lost[index] == MAX_LOST:
            raise UserError(
                f"{server.url}: {fault}; no server answered one sequence in {MAX_LOST} tries: "
                "raise engine.timeout_s or lower engine.concurrency if they are slow, else see "
                "their logs; then give the same command again"
            )

    def _give_up_in_time(self, server: Server, fault: ServerDownError) -> None:
        """Raises a UserError if no server has answered for ``engine.patience_s``."""
        if any(other.is_ready for other in self._servers):
            self._down_since = None
            return
        self._down_since = self._down_since or time.monotonic()
        if time.monotonic() - self._down_since >= self._settings.patience_s:
            raise UserError(
                f"{server.url}: {fault}; no server has answered for "
                f"{self._settings.patience_s:g} s: start one (engine.base_url), then give the same "
                "command again"
            )

    async def _beat(self) -> None:
        """Signs of life: every request has a deadline, so silence does not mean a hang."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._on_done(0)


async def _until_first(*parts: Any) -> None:
    """Runs all coroutines until the first one ends, then ends the others; raises what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
