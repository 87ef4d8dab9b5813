"""A headless Chromium, driven through its own protocol over a pair of pipes; nothing to install but the browser."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers, where Chromium's own sandbox does not start
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-pipe",
)
# The browser reads from descriptor 3 and writes to 4; not every shell can name descriptors above 9.
BECOME = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE = 60.0  # seconds, for a machine that does much else


def program() -> str | None:
    """The browser, if one is installed."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Page:
    """One tab of a browser of its own."""

    def __init__(self, profile: Path) -> None:
        path = program()
        assert path is not None
        reads, self._out = _pipe()
        self._in, writes = _pipe()
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        start = [sys.executable, "-c", BECOME, str(reads), str(writes), *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(start, pass_fds=(reads, writes), **quiet)
        os.close(reads)
        os.close(writes)
        self._received, self._count, self._session = b"", 0, None
        self.complaints: list[str] = []  # what the console was told
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._next(end)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> None:
        """Return when the expression has become true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}; the page says {self.text()!r}"
            time.sleep(0.02)

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.evaluate("document.body.innerText"))

    def open(self, url: str) -> None:
        """Go to an address and wait until the page's script has done its first work."""
        self.leave()
        self.call("Page.navigate", url=url)
        self.wait(
            "document.querySelectorAll('#sizes input').length > 0 || document.querySelector('#error')?.hidden === false"
        )

    def leave(self) -> None:
        """Leave the page, so that what is seen next is not the old one still."""
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")

    def type(self, selector: str, text: str) -> None:
        """Replace a field's text as a person would: focus, select all, type."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """Press and release a key."""
        pressed = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page at a size, by day or by night."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self, end: float) -> dict[str, Any]:
        """The next message; what the page does meanwhile gives no more time."""
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser is gone"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        if message["method"] == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])


def _pipe() -> tuple[int, int]:
    """A pipe whose numbers do not collide with those that the browser wants to have."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
