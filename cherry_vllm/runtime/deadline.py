"""The HTTP client under the ``openai`` client, with a deadline for each try.

The library's own timeout limits only the pause between two bytes, so a server that sends a byte now
and then can hold a request forever. Here each try ends ``timeout_s`` after it began.
"""

import asyncio
import logging
from typing import Any

import httpx2
from openai import DefaultAsyncHttpxClient

from cherry_vllm.runtime.endpoints import RETRIED_STATUS

log = logging.getLogger(__name__)


class DeadlineClient(DefaultAsyncHttpxClient):
    """Ends each try on time, and logs the first one that fails: otherwise retries are silent."""

    def __init__(self, timeout_s: float, *, is_silent: bool = False) -> None:
        super().__init__(timeout=timeout_s)
        self._timeout_s = timeout_s
        self._has_failed = is_silent  # what has failed once is not logged again

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await super().send(request, **options)
        except TimeoutError:
            self._warn(request, f"no reply within {self._timeout_s:g} s")
            raise httpx2.ReadTimeout("deadline exceeded", request=request) from None
        except httpx2.TransportError as error:
            self._warn(request, f"no connection ({type(error).__name__})")
            raise
        if response.status_code >= 500 or response.status_code in RETRIED_STATUS:
            self._warn(request, f"HTTP {response.status_code}")
        return response

    def _warn(self, request: httpx2.Request, fault: str) -> None:
        if not self._has_failed:
            log.warning("%s: %s; further errors are only counted", request.url, fault)
        self._has_failed = True
