"""Attachments whose descriptor is open for reading only: the server fills their entries."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

import msharefs

from support.actor import PAGE, Board, accerr, adrerr, maperr
from support.audit import assert_whole
from support.calls import refused
from support.memory import QUANTUM
from support.stopping import go_on, stop
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")

READ, RW, NONE, EXEC = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, 0, mmap.PROT_EXEC
RETURN = 0xC3  # x86: ret


def attach(actor: Actor, region: msharefs.Region) -> int:
    """Attaches a region through a descriptor of its own, for reading only."""
    fd = os.open(region.path, os.O_RDONLY)
    number = actor.give(fd)
    os.close(fd)
    base = actor.attach(number, prot=READ)
    actor.call("close", number)
    return base


def figures(region: msharefs.Region, actor: Actor) -> dict[str, Any]:
    """What `msharefs clients` shows of a process."""
    [found] = [each for each in region.describe("clients") if each["pid"] == actor.pid]
    return found


def test_pages_that_nobody_has_touched(actors: Actors, make_region: Regions) -> None:
    region, reader, writer = make_region(), actors(), actors()
    base = attach(reader, region)
    for page in (0, 1, 5, 511, 512):
        assert reader.call("load", base + page * PAGE) == [0]
    found = figures(region, reader)
    assert [found[key] for key in ("faults", "materialised_pages", "links", "segv", "prot")] == [
        5, 5, 2, 0, "r--s",
    ]  # fmt: skip
    other = writer.attach(writer.give(region.fd))
    assert writer.call("fill", other, 2 * QUANTUM, 3, 0) == []
    assert reader.call("check", base, 2 * QUANTUM, 3, 0) == [0], "the same pages, not copies"
    stat = region.stat()
    assert stat["counters"]["faults"] * PAGE == stat["rss_bytes"] == 2 * QUANTUM
    assert_whole(region)


def test_pages_of_others_come_many_at_a_time(actors: Actors, make_region: Regions) -> None:
    region, reader, writer = make_region(16 * QUANTUM), actors(), actors()
    other = writer.attach(writer.give(region.fd))
    writer.call("fill", other, 16 * QUANTUM, 3, 0)
    base = attach(reader, region)
    assert reader.call("load", base + 5 * QUANTUM + 7 * PAGE) == [0]
    assert figures(region, reader)["materialised_pages"] == 512, "a span"
    assert reader.call("check", base, 16 * QUANTUM, 3, 0) == [0]
    found = figures(region, reader)
    assert (found["faults"], found["links"]) == (0, 16)
    assert reader.call("detach", base) == []
    assert [each["pid"] for each in region.describe("clients")] == [writer.pid]
    assert region.stat()["counters"]["links"] == 16 + 16, "what has been counted stays"


def test_reading_ahead_in_order(actors: Actors, mounts: Callable[..., Any]) -> None:
    """With fault_around pages in order are filled ahead, as for others."""
    mount = mounts("quantum=2M", "fault_around=32")
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
        reader = actors()
        base = attach(reader, region)
        for page in range(256):
            assert reader.call("load", base + page * PAGE) == [0]
        found, stat = figures(region, reader), region.stat()
        assert found["faults"] < 20
        assert (found["faults"] + stat["counters"]["prefaulted"]) * PAGE == stat["rss_bytes"]
        assert stat["rss_bytes"] >= 256 * PAGE
        reader.call("detach", base)
        assert_whole(region)
    os.unlink(region.path)


def test_holes_and_protections(actors: Actors, make_region: Regions) -> None:
    region, reader = make_region(), actors()
    base = attach(reader, region)
    assert reader.call("load", base) == [0]
    region.unmap(0, PAGE)
    assert reader.call("load", base) == maperr(base)
    assert reader.call("load", base + PAGE) == [0]
    with refused(errno.EFAULT):
        reader.call("write", base, PAGE)
    assert reader.call("write", base + PAGE, PAGE) == [PAGE, 0], "Linux reads there for a process"
    region.map(0, PAGE)
    assert reader.call("load", base) == [0]
    region.protect(0, 2 * PAGE, NONE)
    for page in (base, base + PAGE):
        assert reader.call("load", page) == accerr(page)
    assert figures(region, reader)["segv"] == 3, "the hole and two protected"
    region.protect(0, 2 * PAGE, READ)
    assert [reader.call("load", page) for page in (base, base + PAGE)] == [[0], [0]]
    region.protect(0, 2 * PAGE, RW)
    assert reader.call("store", base) == accerr(base)
    assert reader.call("load", base) == [0]
    region.unmap(0, 2 * QUANTUM)
    assert reader.call("load", base + PAGE) == maperr(base + PAGE)
    assert_whole(region)


def test_what_the_program_stores_stays_its_own(actors: Actors, make_region: Regions) -> None:
    """It may give its own mapping the right to write. The region's pages are out of its reach."""
    region, reader, writer = make_region(), actors(), actors()
    other = writer.attach(writer.give(region.fd))
    writer.call("store", other, 42)
    base = attach(reader, region)
    assert reader.call("load", base) == [42]
    reader.call("plain-protect", base, 2 * PAGE, RW)
    reader.call("store", base, 13)
    assert reader.call("store", base + PAGE, 13) == accerr(base + PAGE)
    assert [writer.call("load", other + at) for at in (0, PAGE)] == [[42], [0]]


def test_memory_that_is_exchanged(actors: Actors, make_region: Regions) -> None:
    region, reader, writer = make_region(), actors(), actors()
    other = writer.attach(writer.give(region.fd))
    base = attach(reader, region)
    for value in range(1, 20):
        region.map(0, QUANTUM)
        assert reader.call("load", base) == [0]
        writer.call("store", other, value)
        assert reader.call("load", base) == [value]
    assert_whole(region)


@pytest.mark.usefixtures("by_thread")
def test_files(actors: Actors, make_region: Regions, tmp_path: Path) -> None:
    region, reader = make_region(), actors()
    base = attach(reader, region)
    assert reader.call("load", base) == [0]
    path = tmp_path / "file"
    path.write_bytes(struct.pack("100Q4096x", *range(1, 101)))
    with path.open("r+b") as file:
        region.map(0, 4 * PAGE, RW, mmap.MAP_SHARED | 0x10, file.fileno())
    assert [reader.call("load", base + 8 * word) for word in range(3)] == [[1], [2], [3]]
    assert reader.call("store", base) == accerr(base)
    assert reader.call("load", base + 3 * PAGE) == adrerr(base + 3 * PAGE), "past its end"
    shown = [line for line in maps_of(reader) if str(path) in line]
    assert shown
    assert all(" r--s " in line for line in shown)
    assert reader.modes(str(path)) == [os.O_RDONLY]
    with refused(errno.EACCES):
        reader.call("plain-protect", base, PAGE, RW)
    region.protect(0, 4 * PAGE, NONE)
    assert reader.call("load", base) == accerr(base)
    region.protect(0, 4 * PAGE, READ)
    assert reader.call("load", base) == [1]
    region.map(0, 4 * PAGE)
    assert reader.call("load", base) == [0]
    found = figures(region, reader)
    assert found["faults"] == 3, "twice memory, once the block of the file"
    assert_whole(region)


def maps_of(actor: Actor) -> list[str]:
    with open(f"/proc/{actor.pid}/maps") as lines:
        return list(lines)


def test_code(actors: Actors, make_region: Regions) -> None:
    region, reader, writer = make_region(), actors(), actors()
    other = writer.attach(writer.give(region.fd))
    writer.call("store", other, RETURN)
    writer.call("store", other + QUANTUM, RETURN)
    base = attach(reader, region)
    assert reader.call("run", base) == accerr(base)
    region.protect(0, PAGE, READ | EXEC)
    assert reader.call("run", base) == []
    assert reader.call("run", base + QUANTUM) == accerr(base + QUANTUM)
    with reader.fork() as child:
        assert child.finish() == []
        assert child.call("run", base) == []
        region.protect(0, PAGE, READ)
        assert child.call("run", base) == accerr(base)
    assert reader.call("run", base) == accerr(base)
    assert reader.call("load", base) == [RETURN]


def test_children(actors: Actors, make_region: Regions) -> None:
    region, reader = make_region(), actors()
    base = attach(reader, region)
    assert reader.call("load", base) == [0]
    with reader.fork(base) as child:
        assert child.finish() == [0]
        assert child.call("load", base + QUANTUM) == [0], "nobody has touched that"
        assert child.call("store", base) == accerr(base)
        with child.fork(base + PAGE) as grandchild:
            assert grandchild.finish() == [0]
            until(lambda: len(region.describe("clients")) == 3, "all three are known")
            assert {each["prot"] for each in region.describe("clients")} == {"r--s"}
            region.unmap(0, QUANTUM)
            for actor in (reader, child, grandchild):
                assert actor.call("load", base + PAGE) == maperr(base + PAGE)
                assert actor.call("load", base + QUANTUM) == [0]
    until(lambda: len(region.describe("clients")) == 1, "only the first is left")
    assert_whole(region)


def test_a_child_of_a_parent_that_has_gone(actors: Actors, make_region: Regions) -> None:
    region, reader = make_region(), actors()
    base = attach(reader, region)
    child = reader.fork()
    assert child.finish() == []
    reader.kill()
    until(lambda: [each["pid"] for each in region.describe("clients")] == [child.pid], "it is gone")
    assert child.call("load", base) == [0]
    region.protect(0, PAGE, NONE)
    assert child.call("load", base) == accerr(base)


def test_many_threads_while_memory_comes_and_goes(actors: Actors, make_region: Regions) -> None:
    region, reader, writer = make_region(), actors(), actors()
    writer.attach(writer.give(region.fd))
    base = attach(reader, region)
    with Board() as board:
        board.phase(Board.THERE)
        reader.call("gaze", reader.give(board.fd), 0, base, 64, 8)
        board.wait(0, 0, 1000)
        for turn in range(40):
            board.phase(Board.CHANGING)
            if turn % 2:
                region.protect(0, 64 * PAGE, NONE)
            else:
                region.unmap(0, 64 * PAGE)
            board.phase(Board.GONE)
            board.wait(0, 1, 20)
            board.phase(Board.CHANGING)
            if turn % 2:
                region.protect(0, 64 * PAGE, READ)
            else:
                region.map(0, 64 * PAGE)
            board.phase(Board.THERE)
            board.wait(0, 0, 200)
            region.map(0, 64 * PAGE)  # in its place: nobody takes a signal
            board.wait(0, 0, 200)
        board.phase(Board.STOP)
        reader.call("join")
        assert board.seen(0)[2] == 0, "accesses with another outcome than Linux has"
    assert_whole(region)


def test_one_that_is_stopped_holds_up_no_unmap(actors: Actors, make_region: Regions) -> None:
    region, reader = make_region(), actors()
    base = attach(reader, region)
    assert reader.call("load", base) == [0]
    stop(reader)
    region.unmap(0, PAGE)
    region.map(0, PAGE)
    region.protect(0, PAGE, READ)
    with refused(errno.EBUSY):
        region.protect(0, PAGE, NONE)
    go_on(reader)
    region.protect(0, PAGE, NONE)
    assert reader.call("load", base) == accerr(base)


def test_a_budget(actors: Actors, make_region: Regions) -> None:
    spans, region, reader, writer = 96, make_region(96 * QUANTUM), actors(), actors()
    other = writer.attach(writer.give(region.fd))
    writer.call("stamp", other, 0, spans, 512)
    base = attach(reader, region)
    reader.call("budget", base, 32 * PAGE)
    assert figures(region, reader)["budget_asked_bytes"] == 32 * PAGE
    assert reader.call("visit", base, 0, spans, 512, 3, 0) == [0]
    assert reader.call("load", base) == [1]
    found = figures(region, reader)
    assert found["evicted_spans"] > spans - 40
    assert found["refaulted_spans"] > 0
    region.protect(0, QUANTUM, NONE)
    assert reader.call("load", base) == accerr(base)
    assert reader.call("visit", base, 512, spans - 1, 512, 1, 0) == [0]
