"""A Chromium for the tests that click through a page, driven over the DevTools protocol; deselected where none is.

The protocol runs through two pipes (``--remote-debugging-pipe``): no port, no driver program, no package.
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-prefers-reduced-motion", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and writes answers to 4, whatever numbers the pipes have here.
START = """
import os, sys
ends = [os.dup(int(end)) for end in sys.argv[1:3]]
ends = [os.dup2(end, 50 + i, inheritable=False) for i, end in enumerate(ends)]
for target, end in zip((3, 4), ends):
    os.dup2(end, target)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 30.0  # seconds until a test gives up waiting
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


def find() -> str | None:
    """The first Chromium on the path."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Tab:
    """One page in a Chromium of its own profile: what it asked for, and what it complained about."""

    def __init__(self, program: str, profile: Path, width: int = 1280, height: int = 900) -> None:
        to_child, self.commands = os.pipe()
        self.answers, from_child = os.pipe()
        command = [sys.executable, "-c", START, str(to_child), str(from_child), program, *FLAGS]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page reports meanwhile is kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            read = os.read(self.answers, 1 << 20)
            assert read, "Chromium is gone"
            self.buffer += read
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])

    def open(self, path: Path) -> None:
        """Load a file and wait until its script says that all of it stands."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def get(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found)
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.get(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.01)

    def click(self, selector: str) -> None:
        """Scroll an element into view and click its middle with the mouse."""
        box = self.get(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center'});"
            " const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a named key, or one character."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {} if key in KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        modifiers = 8 if shift else 0
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **text
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def type(self, text: str) -> None:
        """Type into the element with the focus."""
        self.call("Input.insertText", text=text)

    def prefer(self, scheme: str) -> None:
        """Set what the system prefers: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def forget(self) -> None:
        """Leave the page and what it kept and was told."""
        self.get("(() => { try { localStorage.clear(); } catch {} })()")
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self.call("Emulation.setEmulatedMedia", features=[])
        self.call("Emulation.clearDeviceMetricsOverride")
        self.requests.clear()
        self.complaints.clear()

    def close(self) -> None:
        """End this Chromium."""
        self.session = ""
        try:
            self.call("Browser.close")
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.commands)
            os.close(self.answers)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A Chromium of its own profile."""
    program = find()
    assert program is not None, f"the tests marked browser need Chromium: none of {', '.join(NAMES)} is on the path"
    opened = Tab(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def tab(chromium):
    """The module's Chromium with nothing of the tests before."""
    chromium.forget()
    return chromium


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark of the tests that need a browser."""
    config.addinivalue_line("markers", "browser: clicks through a page in Chromium; deselected where there is none")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser's tests out where there is none, unless they were asked for (``-m browser``)."""
    if find() is not None or "browser" in config.option.markexpr:
        return
    out = [item for item in items if "browser" in item.keywords]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if "browser" not in item.keywords]
