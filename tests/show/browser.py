"""A headless Chromium, driven over chromedriver's HTTP protocol (W3C WebDriver)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900"),
)

_NUM_TRIES = 5


def missing() -> str | None:
    """Why there is no browser here, or None if there is one."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(names)} not found; Debian has them as chromium and chromium-driver" if names else None


class Browser:
    """One browser with one page, ended at the end of a with statement.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        self._driver, port = _started()
        self._url = f"http://127.0.0.1:{port}"
        options = {"binary": shutil.which("chromium"), "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/session/{session['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(self._url, method="DELETE"), timeout=30).close()
        finally:
            self._driver.terminate()
            self._driver.communicate()

    def open(self, path: Path) -> None:
        """Load a file and wait for its load event."""
        self._ask("/url", {"url": path.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """What the body of a function returns."""
        return self._ask("/execute/sync", {"script": script, "args": []})

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(1)));"
        self._ask("/execute/async", {"script": script, "args": []})

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window."""
        self._mouse({"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)})

    def drag(self, x: float, y: float, by: float) -> None:
        """Press at a point, move to the right, and let go."""
        self._mouse(
            {"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 0, "x": round(x + by), "y": round(y)},
            {"type": "pointerUp", "button": 0},
        )

    def wheel(self, x: float, y: float, delta: int) -> None:
        """Turn the wheel over a point."""
        turn = {"type": "scroll", "x": round(x), "y": round(y), "deltaX": 0, "deltaY": delta, "duration": 0}
        self._ask("/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [turn]}]})
        self.settle()

    def use_media(self, name: str) -> None:
        """Lay pages out for print, or, with an empty name, for the screen again."""
        self._ask("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": name}})

    def complaints(self) -> list[str]:
        """The errors on the page's console since it was last asked."""
        return [e["message"] for e in self._ask("/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]

    def _mouse(self, *actions: dict[str, Any]) -> None:
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": list(actions)}
        self._ask("/actions", {"actions": [mouse]})
        self.settle()

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


def _started() -> tuple[subprocess.Popen[str], int]:
    """A driver, and the port on which it listens.

    It takes a port that is free in one version of the internet protocol, and ends at once where that is in use in
    the other, so it is started again.
    """
    driver, said = shutil.which("chromedriver"), []
    assert driver is not None
    for _ in range(_NUM_TRIES):
        started = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert started.stdout is not None
        for line in started.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                return started, int(found[1])
            said.append(line)
        started.communicate()
    raise RuntimeError(f"chromedriver did not start: {''.join(said)}")
