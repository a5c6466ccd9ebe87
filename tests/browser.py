"""A real headless browser, driven over the DevTools protocol: a page opened, measured, pictured."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
PATIENCE_S = 60
PHONE_WIDTH = 390


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page in a browser, and everything that went wrong or over the network in it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._last = socket, 0
        self.faults: list[str] = []  # exceptions, errors and warnings of the console
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events on the way are noted."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(PATIENCE_S))
            if message.get("id") == self._last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message["method"], message["params"])

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.faults.append(str(details.get("exception", details)))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.faults.append(str([item.get("value") for item in event["args"]]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.faults.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def open(self, page: Path, *, width: int, scheme: str) -> None:
        """Opens a file at a width in pixels and a colour scheme, and waits until it has drawn."""
        self.faults.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width <= PHONE_WIDTH,
        )
        self.set_scheme(scheme)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait(f"document.documentElement?.dataset.drawn === '{scheme}'")

    def set_scheme(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON carries it."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until a JavaScript condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}; {self.faults}"
            time.sleep(0.05)

    def screenshot(self, target: Path) -> None:
        """Writes the whole page as PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(picture["data"]))


@contextmanager
def open_tab(browser: str, profile: Path) -> Iterator[Tab]:
    """Starts a browser with an empty profile, and ends it."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_find_page(profile, process), max_size=None, proxy=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _find_page(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The address of the browser's first page, once it has one."""
    import urllib.request

    deadline, port_file = time.monotonic() + PATIENCE_S, profile / "DevToolsActivePort"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        lines = port_file.read_text().splitlines() if port_file.is_file() else []
        if len(lines) < 2:
            continue
        with opener.open(f"http://127.0.0.1:{lines[0]}/json/list") as reply:
            pages = [target for target in json.load(reply) if target["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
    raise AssertionError(f"the browser did not start: {process.poll()}")
