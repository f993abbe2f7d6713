"""A headless Chromium, spoken to over a pipe: pages as people see them, at a width, light or dark.

The protocol is Chrome's DevTools protocol: JSON messages, each with a NUL behind it, on the browser's file handles 3
(to it) and 4 (from it). Every wait is bounded, and the browser ends with its `with` block.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
LIMIT_S = 30.0


@dataclass
class Browser:
    """A browser with one page. `asked`: every URL that the page wanted; `said`: what its console says."""

    to: int
    from_: int
    session: str = ""
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    _count: int = 0
    _rest: bytes = b""
    _loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self._wait(lambda: None, self._count)

    def open(self, page: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a file into a window of that width, as a phone does if it is narrow."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._prefer("dark" if dark else "light")
        self.asked.clear()
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        self._wait(lambda: self._loaded)

    def _prefer(self, colours: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": colours}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def shot(self, file: Path) -> None:
        """A picture of the whole page (PNG)."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def print(self, file: Path) -> None:
        """The page on paper (PDF)."""
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def _wait(self, done: Any, number: int = 0) -> dict[str, Any]:
        end = time.monotonic() + LIMIT_S
        while not (number == 0 and done()):
            message = self._read(end)
            if message.get("id") == number and number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)
        return {}

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        self._loaded = self._loaded or method == "Page.loadEventFired"
        if method == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(parameters))

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.from_], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self.from_, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile. AssertionError without one: `ci/test` installs it."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"none of {', '.join(PROGRAMS)} is installed"
    to_read, to = os.pipe()
    from_, from_write = os.pipe()
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        "about:blank",
    ]  # fmt: skip
    shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # the browser's own handles are 3 and 4
    with (profile.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(to_read), str(from_write), *command],
            pass_fds=(to_read, from_write), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        one = Browser(to, from_)
        target = one.call("Target.createTarget", url="about:blank")["targetId"]
        one.session = one.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            one.call(f"{domain}.enable")
        yield one
    finally:
        os.killpg(process.pid, 9)
        process.wait(10)
        os.close(to)
        os.close(from_)
