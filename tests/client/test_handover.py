"""Fully populated memory is left to Linux, and nobody can tell except by the time it takes."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.actor import MAP_FIXED, PAGE, Actor, Board, accerr, maperr
from support.audit import assert_whole
from support.hostview import number_of
from support.memory import QUANTUM
from support.stopping import go_on, kill_in_a_change, stop, stop_inside_a_fault
from support.wait import until
from support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

# Strict: only the pages that the test touches are filled.
pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched", limit=100)

SIZE = 2 * QUANTUM
RUN = 16 * PAGE  # the shortest


class Client:
    """An actor with the region attached."""

    def __init__(self, actor: Actor, region: msharefs.Region) -> None:
        self.actor = actor
        self.base = actor.attach(actor.give(region.fd))
        self.size = region.stat()["size_bytes"]

    @property
    def watched(self) -> list[tuple[int, int]]:
        """The watched memory, in region offsets."""
        return watched(self.actor.pid, self.base, self.size)

    def fill(self, start: int, size: int, seed: int = 1) -> None:
        assert self.actor.call("fill", self.base + start, size, seed, start // PAGE) == []

    def reads(self, start: int, size: int, seed: int = 1) -> bool:
        """Whether it finds the bytes that `fill` wrote."""
        return self.actor.call("check", self.base + start, size, seed, start // PAGE) == [0]


@pytest.fixture
def pair(actors: Actors, make_region: Regions) -> tuple[msharefs.Region, Client, Client]:
    """A region of two quanta, a process that fills it and one that reads it."""
    region = make_region(SIZE)
    return region, Client(actors(), region), Client(actors(), region)


def of(region: msharefs.Region, client: Client) -> dict[str, int]:
    """The figures of a client."""
    (found,) = (c for c in region.describe("clients") if c["pid"] == client.actor.pid)
    return found


def test_what_is_all_there_needs_no_watch(pair: tuple[msharefs.Region, Client, Client]) -> None:
    region, writer, reader = pair
    writer.fill(0, SIZE)
    assert reader.watched == [(0, SIZE)]
    assert reader.reads(PAGE, PAGE)
    assert reader.watched == [(QUANTUM, SIZE)], "the quantum of the access, and no other"
    found = of(region, reader)
    assert (found["faults"], found["links"]) == (0, 1)
    assert found["materialised_pages"] == QUANTUM // PAGE
    assert reader.reads(0, SIZE)
    assert reader.watched == []
    assert of(region, reader)["links"] == 2
    reader.fill(0, SIZE, 2)
    assert writer.reads(0, SIZE, 2)
    assert_whole(region)


def test_who_fills_it_is_asked_no_more_either(pair: tuple[msharefs.Region, Client, Client]) -> None:
    """Memory that is being filled stays watched: its pages are mapped already."""
    _, writer, _ = pair
    writer.fill(0, QUANTUM)
    assert writer.watched == [(0, SIZE)]


def test_only_runs_and_no_holes(actors: Actors, make_region: Regions) -> None:
    region = make_region(3 * QUANTUM)
    writer, reader = Client(actors(), region), Client(actors(), region)
    writer.fill(0, RUN - PAGE)
    writer.fill(QUANTUM + PAGE, RUN)
    writer.fill(2 * QUANTUM - RUN, 2 * RUN)
    assert reader.reads(0, PAGE)
    assert reader.watched == [(0, 3 * QUANTUM)], "too short"
    assert reader.reads(QUANTUM + PAGE, PAGE)
    rest = [(0, QUANTUM + PAGE), (QUANTUM + PAGE + RUN, 3 * QUANTUM)]
    assert reader.watched == rest
    assert reader.reads(2 * QUANTUM, PAGE)
    rest[1:] = [(QUANTUM + PAGE + RUN, 2 * QUANTUM), (2 * QUANTUM + RUN, 3 * QUANTUM)]
    assert reader.watched == rest
    # We still count first touches.
    reader.fill(QUANTUM, PAGE)
    reader.fill(2 * QUANTUM + RUN, PAGE)
    assert of(region, reader)["faults"] == 2
    assert reader.reads(2 * QUANTUM - RUN, 2 * RUN)
    assert reader.watched == rest
    assert_whole(region)


def test_not_where_pages_are_mapped_already(
    pair: tuple[msharefs.Region, Client, Client],
) -> None:
    """Linux would take the right to write from those, until the next fault."""
    _, writer, reader = pair
    reader.fill(0, PAGE, 2)
    writer.fill(PAGE, QUANTUM - PAGE)
    assert reader.reads(0, PAGE, 2)
    assert reader.reads(PAGE, QUANTUM - PAGE)
    assert reader.watched == [(0, SIZE)]


def test_there_are_not_many(actors: Actors, make_region: Regions) -> None:
    """The number of a process's mappings is limited, so we map the rest."""
    limit, more = 256, 8
    region = make_region((limit + more) * QUANTUM)
    writer, reader = Client(actors(), region), Client(actors(), region)
    starts = range(RUN, region.stat()["size_bytes"], QUANTUM)
    for start in starts:
        writer.fill(start, RUN)
        assert reader.reads(start, PAGE)
    assert len(reader.watched) == limit + 1
    assert reader.watched[-1] == (limit * QUANTUM - QUANTUM + 2 * RUN, len(starts) * QUANTUM)
    assert all(reader.reads(start, RUN) for start in starts)
    assert_whole(region)


def test_not_what_is_write_protected(pair: tuple[msharefs.Region, Client, Client]) -> None:
    region, writer, reader = pair
    writer.fill(0, SIZE)
    region.protect(0, QUANTUM, mmap.PROT_READ)
    assert reader.reads(0, SIZE)
    assert reader.watched == [(0, QUANTUM)]
    assert reader.actor.call("store", reader.base, 1) == accerr(reader.base)


def test_with_a_budget_span_by_span(actors: Actors, make_region: Regions) -> None:
    """A span that is given back is watched again: its faults tell a budget that it is in use."""
    spans, budget = 48, 32
    region = make_region(spans * QUANTUM)
    writer, reader = Client(actors(), region), Client(actors(), region)
    starts = range(0, spans * QUANTUM, QUANTUM)
    for start in starts:
        writer.fill(start, RUN)
    assert reader.reads(0, PAGE)
    assert reader.watched == [(RUN, spans * QUANTUM)]
    assert reader.actor.call("budget", reader.base, budget * PAGE) == []
    assert reader.watched == [(0, spans * QUANTUM)], "what was handed over before"
    for start in starts:
        assert reader.reads(start, PAGE)
    found = of(region, reader)
    assert found["evicted_spans"] >= spans - budget
    given_back = found["evicted_spans"] - found["refaulted_spans"]
    handed = spans * QUANTUM - sum(end - start for start, end in reader.watched)
    assert handed == (spans - given_back) * RUN
    assert all(reader.reads(start, RUN) for start in starts)
    assert of(region, reader)["refaulted_spans"] > found["refaulted_spans"]
    assert reader.actor.call("budget", reader.base, 0) == []
    assert reader.watched == [(0, spans * QUANTUM)]
    assert all(reader.reads(start, RUN) for start in starts)
    assert_whole(region)


def test_children_begin_with_a_watch(pair: tuple[msharefs.Region, Client, Client]) -> None:
    region, writer, reader = pair
    writer.fill(0, SIZE)
    assert reader.reads(0, SIZE)
    with reader.actor.fork() as child:
        child.finish()
        assert watched(child.pid, reader.base, SIZE) == [(0, SIZE)]
        assert child.call("check", reader.base, SIZE, 1, 0) == [0]
        assert watched(child.pid, reader.base, SIZE) == []
        region.unmap(0, PAGE)
        assert child.call("load", reader.base) == maperr(reader.base)


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_taken_away_is_gone(
    pair: tuple[msharefs.Region, Client, Client], stopped: bool
) -> None:
    """Even for a process that cannot do anything itself."""
    region, writer, reader = pair
    writer.fill(0, SIZE)
    assert reader.reads(0, SIZE)
    if stopped:
        stop(reader.actor)
    region.unmap(PAGE, RUN)
    region.protect(2 * RUN, RUN, mmap.PROT_READ)
    region.map(QUANTUM, QUANTUM)  # anew
    assert region.stat()["rss_bytes"] == QUANTUM - RUN
    if stopped:
        go_on(reader.actor)
    for at in (PAGE, RUN):
        assert reader.actor.call("load", reader.base + at) == maperr(reader.base + at)
        # Nor does the kernel fill it for a system call.
        with pytest.raises(OSError, match="Bad address"):
            reader.actor.call("read", reader.base + at, PAGE)
    at = reader.base + 2 * RUN
    assert reader.actor.call("store", at, 1) == accerr(at)
    assert reader.reads(2 * RUN, RUN)
    assert reader.actor.call("load", reader.base + QUANTUM) == [0]
    assert region.stat()["rss_bytes"] == QUANTUM - RUN + PAGE
    assert reader.reads(0, PAGE)
    assert reader.reads(3 * RUN, QUANTUM - 3 * RUN)
    assert_whole(region)


def test_it_is_handed_over_again(pair: tuple[msharefs.Region, Client, Client]) -> None:
    region, writer, reader = pair
    for seed in (1, 2, 3):
        writer.fill(0, QUANTUM, seed)
        assert reader.reads(0, QUANTUM, seed)
        assert reader.watched == [(QUANTUM, SIZE)]
        region.unmap(0, QUANTUM)
        assert reader.watched == [(0, SIZE)]
        region.map(0, QUANTUM)
    assert_whole(region)


@pytest.mark.mount("quantum=1G", "faults=watched")
def test_a_sequential_write_is_mapped_ahead(mount: Mount, actors: Actors) -> None:
    """Linux would fault at each page; so the memory stays ours, and one fault maps many spans."""
    size = 64 << 20
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(1 << 30)
        region.map(0, 1 << 30)
        writer, other = Client(actors(), region), Client(actors(), region)
        writer.fill(0, size)
        other.fill(0, 12 << 20, 2)
        assert other.watched == [(0, 1 << 30)]
        found = of(region, other)
        assert (found["faults"], found["links"]) == (0, 1)
        mapped = found["materialised_pages"] * PAGE
        assert 16 << 20 <= mapped <= 32 << 20
        assert writer.reads(0, 12 << 20, 2)
        assert_whole(region)


def test_the_server_is_killed_before_it_can_watch(mount: Mount, actors: Actors) -> None:
    """The next server finishes the change when the clients that it needs have come back."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(64 * QUANTUM)
        region.map(0, 64 * QUANTUM)
        writer, reader, toucher = (Client(actors(), region) for _ in range(3))
        writer.fill(0, QUANTUM)
        assert reader.reads(0, QUANTUM)
        number = number_of(path)
    with Board() as board:
        board.phase(Board.THERE)
        toucher.actor.call(
            "flood", toucher.actor.give(board.fd), 0, toucher.base + QUANTUM,
            63 * QUANTUM // PAGE, PAGE, 1, 0,
        )  # fmt: skip
        stop_inside_a_fault(toucher.actor, mount, number)
        kill_in_a_change(mount, path, "unmap", 0, QUANTUM)
        stop(reader.actor)
        go_on(toucher.actor)
        board.phase(Board.STOP)
        toucher.actor.call("join")
    mount.start()
    with msharefs.open(path) as region:
        until(lambda: len(region.describe("clients")) == 3, "the clients are known")
        assert region.maps()[0]["start"] == 0, "it waits for the one that is stopped"
        go_on(reader.actor)
        until(lambda: region.maps()[0]["start"] == QUANTUM, "the change is made")
        for client in (reader, writer):
            assert client.actor.call("load", client.base) == maperr(client.base)
        assert_whole(region)


def test_who_cannot_be_reached_holds_a_change_up(mount: Mount, actors: Actors) -> None:
    """It could fill, behind our back, pages that are taken away."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
        writer, reader = Client(actors(), region), Client(actors(), region)
        writer.fill(0, QUANTUM)
        assert reader.reads(0, QUANTUM)
    mount.kill()
    stop(reader.actor)
    mount.start()
    with msharefs.open(path) as region:
        with pytest.raises(OSError, match="nothing is changed") as refused:
            region.unmap(0, QUANTUM)
        assert refused.value.errno == errno.EBUSY
        assert region.maps()[0]["end"] == QUANTUM
        go_on(reader.actor)
        region.unmap(0, QUANTUM)
        assert reader.actor.call("load", reader.base) == maperr(reader.base)


def test_a_block_of_a_file_is_left_to_linux(
    pair: tuple[msharefs.Region, Client, Client],
) -> None:
    """Also when the run in which it lies by now is watched again."""
    region, writer, reader = pair
    block, other = 0, QUANTUM // 2
    writer.fill(0, QUANTUM)
    assert reader.reads(QUANTUM - PAGE, PAGE)
    assert reader.watched == [(QUANTUM, SIZE)]
    fd = os.memfd_create("object", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, RUN)
        os.pwrite(fd, bytes([9]) * RUN, 0)
        region.map(block, RUN, flags=mmap.MAP_SHARED | MAP_FIXED, fd=fd)
    finally:
        os.close(fd)
    assert reader.actor.call("load", reader.base + block) == [9]
    region.unmap(other, RUN)
    region.map(other, RUN)
    assert reader.actor.call("load", reader.base + other) == [0]
    for _ in range(2):
        reader.actor.call("plain-advise", reader.base + block, RUN, mmap.MADV_DONTNEED)
        assert reader.actor.call("load", reader.base + block + PAGE) == [9]
    assert block not in [start for start, _ in reader.watched]
    assert_whole(region)
