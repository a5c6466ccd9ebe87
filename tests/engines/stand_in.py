"""A stand-in for a vLLM server on the loopback interface, which misbehaves on demand.

Its log-probs follow from pairs of tokens and a salt, which stands for the weights.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import load_tokenizer
from tests.judge_server import Fault

VOCABULARY = 2000
Script = Callable[[list[int]], Fault | None]


def logprobs_of(token_ids: list[int], salt: int = 0) -> NDArray[np.float32]:
    """Of all tokens but the first: from -8 to -2."""
    ids = np.array(token_ids, np.int64)
    mixed = (ids[1:] * 31 + ids[:-1] * 7 + salt * 1_000_003) * 2_654_435_761 % 601
    return np.asarray(-2 - mixed / 100, np.float32)


def expected(span: Span, salt: int = 0) -> NDArray[np.float32]:
    """What an engine returns for a span."""
    found = logprobs_of(span.token_ids, salt)
    return np.concatenate([found[start - 1 : stop - 1] for start, stop in span.ranges])


def refusal(reason: str, status: int = 400) -> Fault:
    return Fault(status, json.dumps({"error": {"message": reason, "code": status}}))


class StandIn(ThreadingHTTPServer):
    """``script`` says what becomes of a prompt that is not the probe; None: a proper answer."""

    daemon_threads = True

    def __init__(self, tokenizer: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script: Script = lambda _token_ids: None
        self.tokenizer = load_tokenizer(tokenizer, trust_remote_code=False)
        self.name, self.max_model_len, self.salt = "m", 600, 0
        self.key: str | None = None
        self.has_logprobs, self.offers_chosen, self.gives_logits = True, False, False
        self.probe: list[int] = []
        self.probe_delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []  # of all requests but those about the probe
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Refuses connections from now on."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        card = {"id": self.server.name, "max_model_len": self.server.max_model_len}
        self._send(self._refused() or Fault(body=json.dumps({"data": [card]})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/inference/v1/generate":
            answer, token_ids = self._chosen(body), body["token_ids"]
        else:
            answer, token_ids = self._completion(body), body["prompt"]
        fault = self._refused()
        is_probe = isinstance(token_ids, str) or token_ids == self.server.probe
        if is_probe:
            time.sleep(self.server.probe_delay_s)
        elif fault is None:
            self.server.bodies.append(body)
            fault = self.server.script(token_ids)
        self._send(fault or answer)

    def _refused(self) -> Fault | None:
        given = self.headers["Authorization"]
        if self.server.key and given != f"Bearer {self.server.key}":
            return refusal(f"no access with {given}", 401)
        return None

    def _completion(self, body: dict[str, Any]) -> Fault:
        token_ids = body["prompt"]
        if isinstance(token_ids, str):
            token_ids = self.server.tokenizer(token_ids, add_special_tokens=False)["input_ids"]
        choice: dict[str, Any] = {"prompt_token_ids": token_ids, "token_ids": [7, 8, 1, 9]}
        if "prompt_logprobs" in body and self.server.has_logprobs:
            scale = -1 if self.server.gives_logits else 1
            entries: list[Any] = [None]
            for token, value in zip(
                token_ids[1:], logprobs_of(token_ids, self.server.salt).tolist(), strict=True
            ):
                top = {"3000": {"logprob": scale * -0.5}} if body["prompt_logprobs"] else {}
                entries.append({str(token): {"logprob": scale * value}, **top})
            choice["prompt_logprobs"] = entries
        content = {"choices": [choice], "system_fingerprint": f"vllm-{self.server.name}"}
        return Fault(body=json.dumps(content))

    def _chosen(self, body: dict[str, Any]) -> Fault:
        if not self.server.offers_chosen:
            return refusal("Scale-out endpoints are disabled.", 403)
        token_ids, parameters = body["token_ids"], body["sampling_params"]
        first = parameters["prompt_logprob_start"]
        found = logprobs_of(token_ids, self.server.salt)[first:, None]
        assert parameters["prompt_logprob_token_ids"] == [[it] for it in token_ids[first + 1 :]]
        content = io.BytesIO()
        np.save(content, found)
        coded = base64.b64encode(content.getvalue()).decode()
        answer = {"prompt_token_ids": token_ids, "prompt_token_id_logprobs": coded}
        return Fault(body=json.dumps(answer))

    def _send(self, answer: Fault) -> None:
        time.sleep(answer.delay_s)
        content = answer.body.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + answer.missing_bytes))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = answer.missing_bytes > 0

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # the client has given up
            super().handle_one_request()

    def log_message(self, *_arguments: Any) -> None:
        pass
