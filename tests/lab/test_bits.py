"""`msharefs lab bits`, with processes whose accesses the test knows, page by page of each."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import msharefs
from msharefs.cli import cli
from msharefs.lab import bits
from msharefs.lab.pagemap import PRESENT, Pagemap

from support import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=0", "faults=watched")
PAGE = 4096
SIZE = 2 << 20
PAGES = SIZE // PAGE


@pytest.fixture
def region(shared_mount: Mount, request: pytest.FixtureRequest) -> Iterator[msharefs.Region]:
    """All of its pages have been written."""
    path = shared_mount.path / request.node.name
    region = msharefs.open(path, os.O_RDWR | os.O_CREAT)
    region.truncate(SIZE)
    region.map(0, SIZE)
    view = region.attach()
    for page in range(PAGES):
        view[page * PAGE] = page % 251
    region.detach()
    yield region
    region.close()


def attached(actor: Actor, region: msharefs.Region) -> int:
    return actor.attach(actor.give(region.fd))


def load(actor: Actor, base: int, pages: range | list[int]) -> None:
    for page in pages:
        assert actor.call("load", base + page * PAGE) == [page % 251]


def mapped(pid: int, base: int) -> list[int]:
    """The pages that a process has in its own tables."""
    with Pagemap(pid) as table:
        return [
            page
            for runs in table.runs(base, base + SIZE)
            for start, end, what in runs.tolist()
            if what & PRESENT
            for page in range((start - base) // PAGE, (end - base) // PAGE)
        ]


@pytest.mark.parametrize("pages", [list(range(60)), [5, 4, 300, 302, 301, 304, 310, 4, 511]])
def test_a_fault_maps_its_own_page_and_no_other(
    region: msharefs.Region, actors: Callable[[], Actor], pages: list[int]
) -> None:
    """All pages have entries: otherwise those behind it, around it, or the whole run would come."""
    actor = actors()
    base = attached(actor, region)
    load(actor, base, pages)
    assert mapped(actor.pid, base) == sorted(set(pages))


def test_who_used_what_is_known_by_the_page(
    region: msharefs.Region, actors: Callable[[], Actor]
) -> None:
    first, second = actors(), actors()
    bases = [attached(actor, region) for actor in (first, second)]
    steps = iter([
        lambda: (load(first, bases[0], range(100)), load(second, bases[1], [50, 200])),
        lambda: load(second, bases[1], [7]),
    ])  # fmt: skip
    trace, found = bits.of_region(region.path, 2, 1.0, lambda _: next(steps)())
    once = {(first.pid, page) for page in range(100)} | {(second.pid, 50), (second.pid, 200)}
    assert [set(references) for _, references in trace.intervals()] == [once, {(second.pid, 7)}]
    assert found["seen"] == {"pages": 102, "of_several": 1, "bits": 103}
    assert (found["processes"], found["pages"]) == (2, 101)
    assert found["looks"]["fault_around"] == 0


def test_a_recorded_trace_gives_the_same_outcome(
    region: msharefs.Region, actors: Callable[[], Actor]
) -> None:
    crowd = [actors() for _ in range(3)]
    bases = [attached(actor, region) for actor in crowd]

    def use(seed: int) -> None:
        for number, (actor, base) in enumerate(zip(crowd, bases, strict=True)):
            load(actor, base, [(seed * 31 + number * 17 + step * 7) % 60 for step in range(20)])

    rounds = iter(range(6))
    trace, found = bits.of_region(region.path, 6, 0.5, lambda _: use(next(rounds)))
    file = io.StringIO()
    bits.write(trace, file)
    file.seek(0)
    again = bits.of_trace(file, "file")
    same = ("references", "processes", "pages", "seen")
    assert [found[key] for key in same] == [again[key] for key in same]
    assert [row["each"]["refaults"] for row in found["rows"]] == [
        row["each"]["refaults"] for row in again["rows"]
    ]
    assert any(row["shared"]["refaults"] for row in found["rows"])


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    for text, said in (
        ("page\n", "its first line is not seconds,process,page"),
        ("seconds,process,page\n1,a,1\n0.5,a,1\n", "line 3: must be seconds, not before"),
        ("seconds,process,page\n1,a,x\n", "line 2"),
        ("seconds,process,page\n1,a\n", "line 2"),
        ("seconds,process,page\n0,a,1\n", "no time passes"),
    ):
        file = tmp_path / "trace.csv"
        file.write_text(text)
        shown = CliRunner().invoke(cli, ["lab", "bits", "--trace", str(file)])
        assert shown.exit_code == 1
        assert said in str(shown.exception)


def lines(*references: tuple[float, str, int]) -> str:
    return "seconds,process,page\n" + "".join(f"{s},{p},{n}\n" for s, p, n in references)


def test_the_verb_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    # In each second two processes use pages 0 to 9, and one goes through all others.
    file.write_text(lines(*(
        (float(second), who, page)
        for second in range(1, 6)
        for who, pages in (("a", range(10)), ("b", range(10)), ("c", range(10, 100)))
        for page in pages
    )))  # fmt: skip
    shown = CliRunner().invoke(cli, ["lab", "bits", "--trace", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "550 references of 3 processes to 100 pages in 5.0 s" in shown.output
    assert "10 % were used by more than one process" in shown.output
    told = CliRunner().invoke(cli, ["lab", "bits", "--json", "--trace", str(file)])
    document: dict[str, Any] = schema.check(json.loads(told.output))
    assert {row["memory_pages"] for row in document["rows"]} == {50, 75, 90}
    for row in document["rows"]:
        assert row["each"]["refaults"] <= row["shared"]["refaults"], "what many use stays"
        assert row["shared"]["refaults_per_second"] == row["shared"]["refaults"] / 5


def test_the_verb_with_a_region(region: msharefs.Region, tmp_path: Path) -> None:
    record = tmp_path / "recorded.csv"
    look = ["--interval", "0.01", "--rounds", "2", "--record", str(record)]
    shown = CliRunner().invoke(cli, ["lab", "bits", *look, region.path])
    assert shown.exit_code == 1
    assert "no page of it was used by an attached process" in str(shown.exception)
    for wrong in ([], [region.path, "--trace", str(record)]):
        assert CliRunner().invoke(cli, ["lab", "bits", *wrong]).exit_code == 2
