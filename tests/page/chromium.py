"""Headless Chromium, driven over its DevTools protocol: a page to look at, type into and listen to."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--mute-audio",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
]
START_SECONDS = 60
KEYS = {
    "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
    "ArrowDown": 40, "Tab": 9,
}  # fmt: skip
ALT = 1
CONTROL = 2


class Browser:
    """A Chromium with an empty profile in `folder`; downloads land in `folder / "downloads"`."""

    def __init__(self, folder: Path) -> None:
        assert EXECUTABLE is not None
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        profile = folder / "profile"
        command = [EXECUTABLE, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = self._wait_for_port(profile / "DevToolsActivePort")

    def _wait_for_port(self, file: Path) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{EXECUTABLE} ended with status {self.process.returncode}")
            if file.exists() and (lines := file.read_text().splitlines()):
                return int(lines[0])
            time.sleep(0.05)
        raise TimeoutError(f"{EXECUTABLE} did not start within {START_SECONDS} s")

    def page(self, url: str) -> Page:
        """A new tab of its own session, with nothing stored."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request) as answer:
            target = json.load(answer)
        page = Page(target["webSocketDebuggerUrl"], self.downloads)
        page.open(url)
        return page

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Page:
    """One tab.

    `problems` collects exceptions, console errors and breaches of the content security policy, `requests` the
    addresses that were asked for, `blocked` those of them that the policy forbade.
    """

    def __init__(self, address: str, downloads: Path) -> None:
        self.connection = ExitStack()
        self.socket = self.connection.enter_context(connect(address, max_size=None))
        self.count = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.blocked: list[str] = []
        self._urls: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")
        self.look(1280, 900)
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.send(json.dumps({"id": 0, "method": "Page.close"}))
        self.connection.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(60))
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            self._notice(message.get("method", ""), message.get("params", {}))

    def _notice(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(facts["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and facts["type"] == "error":
            self.problems.append(" ".join(str(arg.get("description", arg.get("value"))) for arg in facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.problems.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif method == "Audits.issueAdded" and facts["issue"]["code"] == "ContentSecurityPolicyIssue":
            self.problems.append(f"policy: {facts['issue']['details']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
            self._urls[facts["requestId"]] = facts["request"]["url"]
        elif method == "Network.loadingFailed" and facts.get("blockedReason") == "csp":
            self.blocked.append(self._urls[facts["requestId"]])

    def open(self, url: str) -> None:
        """Load a page and wait until the server has been asked for everything."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('#server')?.dataset.state !== 'wait'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        result = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=False
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description", script))
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a JavaScript condition holds."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds} s still not: {condition}; problems: {self.problems}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press and release the mouse over the middle of an element, which must be visible there."""
        place = self.run(
            f"""(() => {{
                const node = document.querySelector({json.dumps(selector)});
                node.scrollIntoView({{block: "center", behavior: "instant"}});
                const box = node.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                const top = document.elementFromPoint(x, y);
                return node.contains(top) || top?.contains(node) ? [x, y] : null;
            }})()"""
        )
        assert place, f"{selector} cannot be clicked: it is hidden or covered"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key: a character or a name in `KEYS`."""
        code = KEYS.get(key, ord(key[0]))
        name = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key
        facts = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        characters = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        text = {"text": characters} if characters and not modifiers else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **facts, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an `<input type=file>`."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def look(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window and the theme of the system."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # What still moves would no longer be where it was seen when it is clicked.
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[scheme, motion])

    def screenshot(self, path: Path | None = None, whole: bool = False) -> bytes:
        """A PNG of what is visible, or of the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        data = base64.b64decode(answer["data"])
        if path is not None:
            path.write_bytes(data)
        return data
