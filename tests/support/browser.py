"""A headless Chromium that looks at pages as a reader's browser would.

It is asked over a pipe (`--remote-debugging-pipe`: JSON, a null byte after each message), so it
listens nowhere, and needs no driver. `MSHAREFS_SCREENSHOTS=DIRECTORY` keeps a picture of each page.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 900
"""Of the window, as usual."""

# What is wrong with the page as it is laid out, one sentence each.
_LOOK = r"""(() => {
const wrong = [];
const root = document.documentElement;
if (root.scrollWidth > root.clientWidth)
    wrong.push(`is ${root.scrollWidth} px wide in a window of ${root.clientWidth}`);
if (!root.textContent.trim())
    wrong.push('is empty');
const luminance = colour => {
    const [r, g, b] = colour.match(/[\d.]+/g).map(part => {
        part /= 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const shown = element => element.checkVisibility({visibilityProperty: true, opacityProperty: true});
const named = text => JSON.stringify(text.trim().slice(0, 40));
for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    if (!svg.querySelector('text') || !shown(svg))
        continue;
    const texts = [...svg.querySelectorAll('text')].filter(shown).map(element => {
        const style = getComputedStyle(element);
        const size = parseFloat(style.fontSize) * element.getScreenCTM().a;
        const turned = Math.abs(element.getScreenCTM().b) > 1e-6;
        return {text: element.textContent, style, size, turned,
                box: element.getBoundingClientRect()};
    });
    for (const {text, style, size, turned, box} of texts) {
        if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
            box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
            wrong.push(`${named(text)} is cut off`);
        if (!turned && size < 9)
            wrong.push(`${named(text)} is ${size.toFixed(1)} px high`);
        const contrast = 1.05 / (luminance(style.fill) + 0.05);
        if (contrast < 4.5)
            wrong.push(`${named(text)} has a contrast of ${contrast.toFixed(1)} to white`);
    }
    for (const [n, one] of texts.entries())
        for (const other of texts.slice(n + 1)) {
            const wide = Math.min(one.box.right, other.box.right) -
                         Math.max(one.box.left, other.box.left);
            const high = Math.min(one.box.bottom, other.box.bottom) -
                         Math.max(one.box.top, other.box.top);
            if (wide > 2 && high > Math.min(one.box.height, other.box.height) / 3)
                wrong.push(`${named(one.text)} and ${named(other.text)} overlap`);
        }
}
const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || parent instanceof SVGElement || !shown(parent))
        continue;
    const size = parseFloat(getComputedStyle(parent).fontSize);
    if (size < 9)
        wrong.push(`${named(walker.currentNode.data)} is ${size} px high`);
}
return wrong;
})()"""


def program() -> str | None:
    """The path of a Chromium."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One process, in which each page has a tab of its own."""

    def __init__(self, chromium: str, home: Path) -> None:
        asked, self._ask = os.pipe()
        answers, answered = os.pipe()
        command = (
            chromium, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
        )  # fmt: skip
        # The numbers of the two descriptors are Chromium's.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{asked} 4>&{answered}; exec "$@"', "bash", *command],
            pass_fds=(asked, answered), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
        )  # fmt: skip
        os.close(asked)
        os.close(answered)
        self._answers = os.fdopen(answers, "rb")
        self._left = b""
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        processes = [me := psutil.Process(self._process.pid), *me.children(recursive=True)]
        try:
            self._call("Browser.close")
            self._process.wait(20)
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
            psutil.wait_procs(processes, 10)
            os.close(self._ask)
            self._answers.close()

    def look(self, page: Path) -> list[str]:
        """What is wrong with a page: one sentence for each thing."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        tab = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call(
            "Emulation.setDeviceMetricsOverride", tab, width=WIDTH, height=HEIGHT,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", tab)
        self._events.clear()
        self._call("Page.navigate", tab, url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        evaluated = self._call("Runtime.evaluate", tab, expression=_LOOK, returnByValue=True)
        assert "exceptionDetails" not in evaluated, evaluated
        self._keep(page, tab)
        said = list(self._said())
        self._call("Target.closeTarget", targetId=target)
        return [*said, *evaluated["result"]["value"]]

    def _said(self) -> Iterator[str]:
        """What the browser complained of, and what the page wanted from elsewhere."""
        for event in self._events:
            match event:
                case {"method": "Network.requestWillBeSent", "params": {"request": request}}:
                    if not request["url"].startswith(("file:", "data:")):
                        yield f"requests {request['url']}"
                case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                    yield f"{entry['level']}: {entry['text']}"
                case {"method": "Runtime.consoleAPICalled", "params": {"type": kind, "args": what}}:
                    yield f"console.{kind}: {what}"
                case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": what}}:
                    yield f"exception: {what['text']}"

    def _keep(self, page: Path, tab: str) -> None:
        directory = os.environ.get("MSHAREFS_SCREENSHOTS")
        if directory is not None:
            shot = self._call("Page.captureScreenshot", tab, captureBeyondViewport=True)
            (Path(directory) / f"{page.stem}.png").write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, tab: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        question = {"id": number, "method": method, "params": parameters}
        if tab is not None:
            question["sessionId"] = tab
        os.write(self._ask, json.dumps(question).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            more = self._answers.read1(1 << 16)
            assert more, f"Chromium has ended, status {self._process.wait(10)}"
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found
