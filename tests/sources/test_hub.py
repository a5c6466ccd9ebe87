"""``hf://`` paths, against a hub of a few data sets that listens on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote

import pytest

from tests.conftest import ROWS

pytestmark = pytest.mark.process

FIND = """
import sys
from cherry_vllm.sources import find_files
path, split, config = sys.argv[1:]
for file in find_files([path], split=split or None, config=config or None):
    print(file)
"""
REVISION = "0123456789" * 4
CARD = """---
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*.jsonl
  - split: test
    path: plain/test.jsonl
- config_name: fancy
  data_files: fancy/*.jsonl
---
"""
# The files of the data sets: someone/data has no card, someone/configured has one.
FILES = {
    "someone/data": {"train.jsonl": b""},
    "someone/splits": dict.fromkeys(
        ("data/train-0.jsonl", "data/train-1.jsonl", "data/test.jsonl"), b""
    ),
    "someone/configured": {
        "README.md": CARD.encode(),
        "plain/train-0.jsonl": b"",
        "plain/test.jsonl": b"",
        "fancy/a.jsonl": b"",
    },
}


class Hub(BaseHTTPRequestHandler):
    """Serves :data:`FILES`; each file without content holds the shipped rows."""

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

    def do_POST(self) -> None:
        """Which of these paths there are."""
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        content = json.dumps(tree(self.data_set(), "", wanted)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def data_set(self) -> str:
        return next((name for name in FILES if f"/{name}" in self.path), "")

    def find(self) -> tuple[bytes, dict[str, str]]:
        name, path = self.data_set(), unquote(self.path.partition("?")[0])
        if not name:
            return b"", {}
        if "/resolve/" in path:
            file = path.partition("/resolve/")[2].partition("/")[2]
            content = FILES[name].get(file)
            found = b"" if content is None else content or ROWS.read_bytes()
            headers = {"X-Repo-Commit": REVISION, "ETag": f'"{file}"'}
            return found, headers if found else {"X-Error-Code": "EntryNotFound"}
        if "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            return json.dumps(tree(name, folder)).encode(), {}
        siblings = [{"rfilename": file} for file in FILES[name]]
        return json.dumps({"id": name, "sha": REVISION, "siblings": siblings}).encode(), {}

    def log_message(self, *_: object) -> None:
        pass


def tree(name: str, folder: str, wanted: Sequence[str] | None = None) -> list[dict[str, object]]:
    """The files and folders of a data set, in a folder or of certain paths."""
    prefix = f"{folder}/" if folder else ""
    found: list[dict[str, object]] = []
    for file, content in FILES[name].items():
        if file.startswith(prefix):
            size = len(content or ROWS.read_bytes())
            found.append({"type": "file", "path": file, "size": size, "oid": file})
    parents = {str(Path(file).parent) for file in FILES[name]} - {".", folder}
    found += [{"type": "directory", "path": parent, "oid": parent} for parent in parents]
    return [item for item in found if wanted is None or item["path"] in wanted]


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


@pytest.mark.parametrize(
    ("path", "split", "config", "files"),
    [
        ("someone/data", "", "", ["train.jsonl"]),
        ("someone/data", "train", "", ["train.jsonl"]),
        (f"someone/data@{REVISION}", "", "", ["train.jsonl"]),
        ("someone/splits", "train", "", ["train-0.jsonl", "train-1.jsonl"]),
        ("someone/splits", "test", "", ["test.jsonl"]),
        ("someone/configured", "train", "plain", ["train-0.jsonl"]),
        ("someone/configured", "", "fancy", ["a.jsonl"]),
    ],
)
def test_a_data_set_is_read_by_its_id(
    hub: dict[str, str], path: str, split: str, config: str, files: list[str]
) -> None:
    found = find(hub, f"hf://datasets/{path}", split, config)
    assert found.returncode == 0, found.stderr
    paths = [Path(line) for line in found.stdout.split()]
    assert [path.name for path in paths] == files
    assert all(path.read_bytes() == ROWS.read_bytes() for path in paths)


@pytest.mark.parametrize(
    ("path", "split", "config", "advice"),
    [
        ("someone/splits", "", "", "several splits (train, test); add data.split=train"),
        ("someone/splits", "dev", "", "no split 'dev' (found: train, test); check data.split"),
        ("someone/configured", "train", "", "set data.config"),
        ("someone/configured", "train", "x", "set data.config"),
        ("nobody/data", "", "", "check the path, the network and HF_TOKEN"),
        ("someone/data/train.jsonl", "train", "", "leave out data.split"),
    ],
)
def test_what_is_not_clear_about_a_data_set_is_one_line(
    hub: dict[str, str], path: str, split: str, config: str, advice: str
) -> None:
    found = find(hub, f"hf://datasets/{path}", split, config)
    last_line = found.stderr.strip().splitlines()[-1]
    assert last_line.startswith("cherry_vllm.errors.UserError")
    assert path in last_line
    assert advice in last_line


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(hub: dict[str, str]) -> None:
    environment = hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for path in ("someone/data", "someone/data/train.jsonl", "someone/data/*.jsonl"):
        last_line = find(environment, f"hf://datasets/{path}").stderr.strip().splitlines()[-1]
        assert last_line.startswith("cherry_vllm.errors.UserError")
        assert "the network" in last_line


@pytest.mark.parametrize("path", ["nobody/data/train.jsonl", "someone/data/test*.jsonl"])
def test_what_the_hub_does_not_have_is_one_clear_error(hub: dict[str, str], path: str) -> None:
    found = find(hub, f"hf://datasets/{path}")
    last_line = found.stderr.strip().splitlines()[-1]
    assert last_line.startswith("cherry_vllm.errors.UserError")
    assert path in last_line


def find(
    hub: dict[str, str], path: str, split: str = "", config: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FIND, path, split, config]
    return subprocess.run(command, env=hub, capture_output=True, text=True, check=False)
