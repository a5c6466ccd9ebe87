"""``hf://`` paths, against a hub of one data set that listens on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import ROWS

pytestmark = pytest.mark.process

FIND = "import sys; from cherry_vllm.sources import find_files; print(*find_files(sys.argv[1:]))"
REVISION = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """Serves the shipped rows as ``train.jsonl`` of the data set ``someone/data``."""

    def do_GET(self) -> None:
        content, headers = self.find()
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the name is the server's

    def find(self) -> tuple[bytes, dict[str, str]]:
        rows = ROWS.read_bytes()
        if self.path.endswith("/resolve/main/train.jsonl"):
            return rows, {"X-Repo-Commit": REVISION, "ETag": '"rows"'}
        if "/api/datasets/someone/data/tree/main" in self.path:
            file = {"type": "file", "path": "train.jsonl", "size": len(rows), "oid": "rows"}
            return json.dumps([file]).encode(), {}
        if self.path.startswith("/api/datasets/someone/data"):
            return json.dumps({"id": "someone/data", "sha": REVISION, "siblings": []}).encode(), {}
        return b"", {}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that takes this hub for its hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": ""}
    server.shutdown()


@pytest.mark.parametrize("name", ["train.jsonl", "*.jsonl"])
def test_hub_files_are_fetched_and_read_like_local_ones(hub: dict[str, str], name: str) -> None:
    found = find(hub, f"hf://datasets/someone/data/{name}")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).read_bytes() == ROWS.read_bytes()


@pytest.mark.parametrize("path", ["nobody/data/train.jsonl", "someone/data/test*.jsonl"])
def test_what_the_hub_does_not_have_is_one_clear_error(hub: dict[str, str], path: str) -> None:
    found = find(hub, f"hf://datasets/{path}")
    last_line = found.stderr.strip().splitlines()[-1]
    assert last_line.startswith("cherry_vllm.errors.UserError")
    assert path in last_line


def find(hub: dict[str, str], path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FIND, path]
    return subprocess.run(command, env=hub, capture_output=True, text=True, check=False)
