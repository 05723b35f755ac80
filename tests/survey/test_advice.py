"""What would help today, and how a survey is shown: pages, and looks one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab.survey import words
from msharefs.lab.survey.advice import HUGE_BYTES, advice

from .conftest import BASE, SIZE, SLOT, SPAN, TABLE, TABLES, memfd, memory, survey, the, touch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor


def ways(found: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {one["way"]: one for one in found["advice"] if one["for"] == name}


@pytest.fixture
def sharing(family: Callable[[int], list[Actor]]) -> list[Actor]:
    """Four that share memory; each has two pages of each 2 MiB."""
    memory(family.parent)  # type: ignore[attr-defined]
    actors = family(3)
    for actor in actors:
        for span in range(TABLES):
            touch(actor, BASE + span * SPAN, 2 * TABLE)
    return actors


def test_huge_pages_would_take_pte_tables_away(sharing: list[Actor]) -> None:
    found = survey(sharing)
    one = the(found, "anon")
    assert one["resident_bytes"] == TABLES * 2 * TABLE
    thp = ways(found, one["name"])["transparent huge pages"]
    assert thp["saved_bytes"] == 4 * TABLES * TABLE
    more = TABLES * HUGE_BYTES - one["resident_bytes"]
    assert thp["price"].startswith(f"up to {more / 2**20:.4g} MiB more memory")
    huge = ways(found, one["name"])["hugetlb"]
    assert huge["saved_bytes"] == 4 * TABLES * TABLE  # no whole gigabyte
    assert huge["price"].startswith(f"{TABLES} pages of 2 MiB")
    # Each of them has less than a budget of 1 MiB.
    assert "a page-table budget" not in ways(found, one["name"])


def test_a_gigabyte_of_hugetlb_shares_its_pmd_tables(three: list[Actor]) -> None:
    fd = memfd(1 << 30)
    for number, actor in enumerate(three):
        memory(actor, actor.give(fd), address=BASE + number * SLOT, size=1 << 30)
        for span in range(512):
            actor.call("load", BASE + number * SLOT + span * SPAN)
    os.close(fd)
    found = survey(three)
    one = the(found, "shm", 1 << 30)
    assert one["own_pte_tables_bytes"] == 3 * 512 * TABLE
    huge = ways(found, one["name"])["hugetlb"]
    assert huge["saved_bytes"] == (3 * 512 + 2) * TABLE


def test_fewer_processes(sharing: list[Actor]) -> None:
    found = survey(sharing)
    fewer = ways(found, "actor")["fewer processes"]
    assert fewer["saved_bytes"] == found["vmpte_bytes"] / 2


def document(**figures: Any) -> dict[str, Any]:
    """A system with 1,500 processes that share 300 GiB, as the series' authors had."""
    tables = 1500 * 300 * 513 * TABLE
    one = {
        "name": "shared_buffers", "class": "anon", "bytes": 300 << 30, "processes": 1500,
        "programs": {"postgres": 1500}, "own_tables_bytes": tables, "resident_bytes": 300 << 30,
        "own_pte_tables_bytes": 1500 * 300 * 512 * TABLE, "saved_bytes": tables - (1 << 20),
        "pte_tables": 300 * 512,
    }  # fmt: skip
    program = {"program": "postgres", "processes": 1500, "vmpte_bytes": tables}
    return {
        "processes": 1500, "vmpte_bytes": tables, "linked_bytes": 0, "error_bytes": 0,
        "looked_at": 1500, "unseen": [], "hidden": {"processes": 0},
        "saved_bytes": one["saved_bytes"], "objects": [one], "programs": [program], **figures,
    }  # fmt: skip


def test_what_a_budget_would_keep() -> None:
    made = {one["way"]: one for one in advice(document())}
    budget = made["a page-table budget"]
    assert budget["saved_bytes"] == 1500 * (300 * 512 * TABLE - (1 << 20))
    assert "MSHAREFS_PT_BUDGET=1M msharefs run --adopt-anon " in budget["how"]
    assert made["hugetlb"]["saved_bytes"] == 1500 * 300 * 512 * TABLE + 300 * 1499 * TABLE
    assert "huge_pages = on" in made["hugetlb"]["how"]
    assert made["transparent huge pages"]["price"].startswith("no more memory")


def test_the_answer_in_one_sentence() -> None:
    assert words.answer(document()) == (
        "1,500 processes: page tables 880.6 GiB; sharing would take away 880.6 GiB (100.0 %): "
        "880.6 GiB shared_buffers of 1,500 postgres"
    )
    assert "880.6 GiB (100.0 %) +- 2 GiB: " in words.answer(document(error_bytes=2 << 30))


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        linked = ("src", "href", "xlink:href", "clip-path")
        self.sources += [value or "" for name, value in attrs if name in linked]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", "survey", *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_a_page_stands_alone(sharing: list[Actor], tmp_path: Path) -> None:
    done = run("--tree", sharing[0].pid, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    found = Page(text)
    assert found.tags.count("svg") == 2
    assert found.tags.count("table") == 5
    # All that is fetched is in the page, and is there once.
    linked = {source.removeprefix("url(").removesuffix(")") for source in found.sources}
    assert linked == {f"#{name}" for name in found.ids}
    assert len(found.ids) == len(set(found.ids))
    assert "script" not in found.tags
    assert done.stdout.splitlines()[0] in text
    assert os.uname().release in text


def test_looks_one_after_the_other(sharing: list[Actor], tmp_path: Path) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "msharefs", "survey", "--tree", str(sharing[0].pid), "--json",
         "--watch", "0.05", "--html", tmp_path / "page.html"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watcher.stdout is not None
    with watcher, watcher.stdout:
        first = json.loads(watcher.stdout.readline())
        for actor in sharing:
            touch(actor, size=SIZE)
            memory(actor, address=BASE + SLOT)
            touch(actor, BASE + SLOT)
        last = first
        while last["vmpte_bytes"] == first["vmpte_bytes"]:
            last = json.loads(watcher.stdout.readline())
        assert last["since_seconds"] > first["since_seconds"]
        last_born, *others = sharing[::-1]
        last_born.kill()
        while last["processes"] == first["processes"]:
            last = json.loads(watcher.stdout.readline())
        for actor in others:
            actor.kill()
        # When nobody is left it ends by itself.
        for line in watcher.stdout:
            last = json.loads(line)
        assert watcher.wait(30) == 0
    assert last["processes"] < first["processes"]
    assert Page((tmp_path / "page.html").read_text()).tags.count("svg") >= 1


def test_a_page_that_cannot_be_written(three: list[Actor], tmp_path: Path) -> None:
    done = run("--pid", three[0].pid, "--html", tmp_path / "none" / "page.html")
    assert done.returncode == 1
    assert done.stderr.startswith("msharefs: ")
