"""A real Chromium without a window, for tests of what a person sees: `with browser.chromium() as chrome`.

It is driven over its own protocol (chromedevtools.github.io/devtools-protocol) through a pair of pipes, which needs no
driver and no library. Where no Chromium is installed, the test that asks for one is skipped.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "Backspace": (8, ""), "Space": (32, " "),
        "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")}  # fmt: skip
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


@contextlib.contextmanager
def chromium() -> Iterator["Chromium"]:
    """A fresh browser with an empty profile; it can reach loopback and files only."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("needs a Chromium (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        commands, replies = os.pipe(), os.pipe()
        process = subprocess.Popen(  # it reads descriptor 3 and writes 4; dash knows one digit only
            ["bash", "-c", f'exec "$0" "$@" 3<&{commands[0]} 4>&{replies[1]}', binary, *FLAGS]
            + [f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands[0], replies[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(replies[1])
        chrome = Chromium(commands[1], replies[0])
        try:
            yield chrome
        finally:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                chrome.call("Browser.close", timeout=10)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(commands[1])
            os.close(replies[0])


class Chromium:
    def __init__(self, commands: int, replies: int):
        self.commands, self.replies = commands, replies
        self.unread, self.last_id = b"", 0
        self.pages: dict[str, Page] = {}

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """A new tab at the url (`path.as_uri()` for a file), when it has loaded. `dark` is what the system prefers."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", {"features": scheme})
        page.go(url)
        return page

    def call(
        self, method: str, parameters: dict | None = None, session: str | None = None, timeout: float = 60
    ) -> dict[str, Any]:
        """One command of the protocol and its result. Raises RuntimeError with what the browser says is wrong."""
        wanted = self.send(method, parameters, session)
        while (reply := self.read(timeout)).get("id") != wanted:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def send(self, method: str, parameters: dict | None = None, session: str | None = None) -> int:
        """One command, whose result nobody waits for; returns its id."""
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": parameters or {}}
        content = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while content:
            content = content[os.write(self.commands, content) :]
        return self.last_id

    def read(self, timeout: float) -> dict[str, Any]:
        """The next message; an event is noted by its page as well."""
        while b"\0" not in self.unread:
            if not select.select([self.replies], [], [], timeout)[0]:
                raise TimeoutError(f"Chromium said nothing for {timeout:.0f} s")
            received = os.read(self.replies, 1 << 20)
            if not received:
                raise EOFError("Chromium has ended")
            self.unread += received
        line, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(line)
        if page := self.pages.get(message.get("sessionId", "")):
            page.note(message)
        return message


class Page:
    """One tab. `errors` are uncaught exceptions and what went to console.error, `requests` every URL that was asked
    for, `dialogs` what alert() and its like said; they are dismissed."""

    def __init__(self, chrome: Chromium, session: str):
        self.chrome, self.session = chrome, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.loaded = 0

    def note(self, event: dict[str, Any]) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.errors.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in said["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(said["message"])
            self.chrome.send("Page.handleJavaScriptDialog", {"accept": False}, self.session)

    def call(self, method: str, parameters: dict | None = None) -> dict[str, Any]:
        return self.chrome.call(method, parameters, self.session)

    def resize(self, width: int, height: int) -> None:
        """CSS pixels. Below 600 it is a phone, which ignores what is wider than its screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", metrics)

    def go(self, url: str) -> None:
        before = self.loaded
        failed = self.call("Page.navigate", {"url": url}).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        self._await_load(before)

    def reload(self) -> None:
        before = self.loaded
        self.call("Page.reload")
        self._await_load(before)

    def _await_load(self, before: int) -> None:
        while self.loaded == before:
            self.chrome.read(timeout=60)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, a promise's when it is kept. Raises RuntimeError where it throws."""
        settings = {"expression": script, "returnByValue": True, "awaitPromise": True}
        result = self.call("Runtime.evaluate", settings)
        if details := result.get("exceptionDetails"):
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 30) -> Any:
        """The expression's value as soon as it is true."""
        end = time.monotonic() + timeout
        while not (value := self.evaluate(condition)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {timeout:.0f} s: {condition}")
            time.sleep(0.05)
        return value

    def text(self, selector: str = "body") -> str:
        """What a person can read in the first element that the CSS selector finds."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that the selector finds."""
        place = self.evaluate(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            if (!found) throw new Error('nothing on the page is ' + {json.dumps(selector)});
            found.scrollIntoView({{block: 'center', behavior: 'instant'}});
            const box = found.getBoundingClientRect();
            return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", place | {"type": kind, "button": "left", "clickCount": 1})

    def press(self, key: str) -> None:
        """One key by its name, a letter or one of KEYS, with modifiers before it: `a`, `Enter`, `Control+Enter`."""
        *held, name = key.split("+") if len(key) > 1 else [key]
        code, text = KEYS.get(name, (ord(name[0].upper()), name))
        modifiers = sum(MODIFIERS[modifier] for modifier in held)
        event = {"key": " " if name == "Space" else name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        event["code"] = f"Key{name.upper()}" if name.isalpha() and len(name) == 1 else name
        if text and not modifiers & ~MODIFIERS["Shift"]:
            event["text"] = text
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", event | {"type": kind})

    def type(self, text: str) -> None:
        """Text into what has the focus, as a keyboard or a paste would put it."""
        self.call("Input.insertText", {"text": text})

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        picture = self.call("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(picture["data"]))
