"""A chat endpoint on the loopback interface that misbehaves on demand and counts what it does."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

ANSWERS = re.compile(r"The Start of (?:Assistant \d's|the) Answer\]\n(.*?)\n\[The End", re.DOTALL)
HEADERS = {"Content-Type": "application/json"}


class Fault(NamedTuple):
    """What comes in place of a reply.

    ``missing_bytes`` breaks the connection before the end; ``drip_s`` passes before each byte.
    """

    status: int = 200
    body: str = "{}"
    headers: dict[str, str] = HEADERS
    delay_s: float = 0
    missing_bytes: int = 0
    drip_s: float = 0


class Received(NamedTuple):
    at: float
    user: str
    authorization: str | None
    body: dict[str, Any]


def completion(text: str | None, finish_reason: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]})


def score_by_length(body: dict[str, Any]) -> str:
    """The judge of these tests: a point for every word, ten at most, in the form asked for."""
    answers = ANSWERS.findall(body["messages"][-1]["content"])
    scores = [min(10, len(answer.split())) for answer in answers]
    if "response_format" not in body:
        return f"{' '.join(map(str, scores))}\nOne point for every word."
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps(dict(zip(fields, [*scores, "One point for every word."], strict=True)))


class JudgeServer(ThreadingHTTPServer):
    """``script`` says what becomes of the nth request (from 0) for a prompt; None: a reply."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Callable[[str, int], Fault | None] = lambda _user, _index: None
        self.received: list[Received] = []
        self.replied: Counter[str] = Counter()  # replies per prompt: what a user pays for
        self.max_under_way = 0
        self.reply_limit: int | None = None  # after so many replies none is given any more
        self.reply_delay_s = 0.0
        self.lock = threading.Lock()
        self._under_way = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def enter(self, received: Received) -> Fault | None:
        with self.lock:
            self._under_way += 1
            self.max_under_way = max(self.max_under_way, self._under_way)
            self.received.append(received)
            index = sum(other.user == received.user for other in self.received) - 1
            fault = self.script(received.user, index)
            num_replies = sum(self.replied.values())
            if fault is None and self.reply_limit is not None and num_replies >= self.reply_limit:
                return Fault(delay_s=60)
            self.replied[received.user] += fault is None
            return fault

    def leave(self) -> None:
        with self.lock:
            self._under_way -= 1


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = body["messages"][-1]["content"]
        key = self.headers["Authorization"]
        fault = self.server.enter(Received(time.monotonic(), user, key, body))
        answer = fault or Fault(
            body=completion(score_by_length(body)), delay_s=self.server.reply_delay_s
        )
        time.sleep(answer.delay_s)
        self.server.leave()
        content = answer.body.replace("{key}", str(key)).encode()
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + answer.missing_bytes))
            self.end_headers()
            if answer.drip_s:
                for byte in content:
                    time.sleep(answer.drip_s)
                    self.wfile.write(bytes([byte]))
            else:
                self.wfile.write(content)
        except OSError:
            pass  # the client has given up
        self.close_connection = answer.missing_bytes > 0

    def log_message(self, *_arguments: Any) -> None:
        pass
