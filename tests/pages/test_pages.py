"""Pages and pictures in a browser: whole, legible, without errors, and with nothing from elsewhere.

Those of `bench` are looked at where it is run: `tests/bench`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs import client
from msharefs.lab import plot, report, sampling
from msharefs.lab.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.browser import Browser
    from support.server import Mount

ROOT = Path(__file__).parents[2]
CELL = 2 << 20
PAGES = 512


@pytest.fixture(scope="module")
def region(shared_mount: Mount) -> Iterator[client.Region]:
    """Of four processes: tables that one has, several, all and nobody, full ones and others."""
    path = shared_mount.path / "a <b> & c"
    with client.open(path, os.O_RDWR | os.O_CREAT) as region, Workers(4) as workers:
        region.truncate(1 << 30)
        region.map(0, 12 * CELL)
        region.map(512 << 20, 256 * CELL)
        workers.ask(f"attach {path}")
        for number in range(4):
            first, count = number * PAGES, (5 - number) * PAGES - 100 * number
            workers.ask(f"order 0 {first} {count} {count} sequential", [number])
            workers.ask("touch 1 write", [number])
        yield region


def msharefs(*arguments: str | os.PathLike[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "msharefs", *arguments],
        check=True, timeout=100, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_what_is_wrong_is_told(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        "<p style='width: 3000px'>wide</p><p style='font-size: 5px'>small</p>"
        "<img src='http://example.invalid/x.png'><script>console.error('x'); y();</script>"
        "<svg width=200 height=50><text x=150 y=20>much too long</text>"
        "<text x=5 y=20>one</text><text x=10 y=20>other</text>"
        "<text y=45 fill=#eee>pale</text></svg>"
    )
    said = "\n".join(browser.look(page))
    for each in ("is 3", '"small" is 5 px', "requests http://example.invalid", "console.error",
                 "exception", '"much too long" is cut off', '"one" and "other" overlap',
                 '"pale" has a contrast of 1.2'):  # fmt: skip
        assert each in said
    page.write_text("<p>good</p>")
    assert browser.look(page) == []


def test_a_report(
    shared_mount: Mount, region: client.Region, browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    pids = [each["pid"] for each in region.clients()]
    with sampling.Sampler(lambda: pids, shared_mount.state, interval=0.01) as seen:
        pass  # a first and a last look
    command = ["./server", "--name", "a very long name, " * 9]
    found = report.document(command, 0, 1.0, 9, seen, {"--adopt": "anon:2097152," * 9})
    report.write(found, page)
    shown = page.read_text()
    assert shown.count("<svg") == 2  # over time, and a map
    assert shown.count("<table") == 3
    assert browser.look(page) == []


def test_a_map(region: client.Region, browser: Browser, tmp_path: Path) -> None:
    picture = tmp_path / "map.svg"
    msharefs("pagetable", region.path, "--plot", picture)
    assert browser.look(picture) == []
    shown = picture.read_text()
    assert any(colour in shown for colour in plot.ONE)
    for colour in (plot.MANY["several"], plot.NO_TABLE):
        assert colour in shown


def test_a_survey(region: client.Region, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "survey.html"
    pids = ",".join(str(each["pid"]) for each in region.clients())
    msharefs("survey", "--pid", pids, "--html", page)
    assert browser.look(page) == []


def test_ages(region: client.Region, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "idle.html"
    msharefs("idle", "--interval", "0.01", "--rounds", "2", "--html", page, region.path)
    assert browser.look(page) == []


def test_what_a_notebook_shows(region: client.Region, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "notebook.html"
    page.write_text(f"<meta charset=utf-8>{region._repr_html_()}")
    assert browser.look(page) == []


@pytest.mark.timeout(600)  # eight seconds of a processor, on a machine that has others to do
def test_the_site(browser: Browser) -> None:
    """`make docs`: a warning of Sphinx's is an error."""
    done = subprocess.run(
        [ROOT / "scripts/docs"], check=False, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    start = Path(done.stdout.removeprefix("docs: ").strip())
    assert browser.look(ROOT / start) == []
