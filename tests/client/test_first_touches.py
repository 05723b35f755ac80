"""First touches are Linux's (-o faults=linux): nobody is asked, and every page is counted."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs

from support.actor import PAGE, READ_WRITE, Actor, Board, accerr, maperr
from support.audit import assert_whole
from support.memory import QUANTUM
from support.stopping import go_on, stop
from support.wait import until
from support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

pytestmark = pytest.mark.mount("quantum=2M", "faults=linux", "fault_around=1", limit=100)

SIZE = 2 * QUANTUM
RUN = 16 * PAGE


class Client:
    """An actor with the region attached."""

    def __init__(
        self, actor: Actor, region: msharefs.Region, prot: int = mmap.PROT_READ | mmap.PROT_WRITE
    ) -> None:
        self.actor = actor
        self.base = actor.attach(actor.give(region.fd), prot=prot)
        self.size = region.stat()["size_bytes"]

    @property
    def watched(self) -> list[tuple[int, int]]:
        """The watched memory, in region offsets."""
        return watched(self.actor.pid, self.base, self.size)

    def store(self, offset: int) -> object:
        return self.actor.call("store", self.base + offset, 1)

    def load(self, offset: int) -> object:
        return self.actor.call("load", self.base + offset)


def entries(region: msharefs.Region) -> int:
    """The entries in the region's page tables."""
    tables = region.describe("pagetable")["levels"][-1]["tables"]
    return sum(table["present"] for table in tables)


def counted(region: msharefs.Region) -> int:
    """All first touches so far, and pages filled ahead of them."""
    counters = region.stat()["counters"]
    return counters["faults"] + counters["prefaulted"]


def test_one_fault_and_then_none(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    one, other = Client(actors(), region), Client(actors(), region)
    assert one.watched == [(0, SIZE)]
    for at in range(0, SIZE, 3 * PAGE):
        assert one.store(at) == []
    assert one.watched == []
    assert (region.stat()["rss_bytes"], region.stat()["counters"]["links"]) == (
        -(-SIZE // PAGE // 3) * PAGE, 2,
    )  # fmt: skip
    assert counted(region) == entries(region) == -(-SIZE // PAGE // 3)
    for at in range(PAGE, SIZE, 3 * PAGE):
        assert other.store(at) == []
    assert counted(region) == entries(region) == 2 * -(-SIZE // PAGE // 3) - 1
    assert one.load(PAGE) == [1]
    assert_whole(region)


def test_not_what_may_not_be_written_nor_with_a_budget(
    actors: Actors, make_region: Regions
) -> None:
    region = make_region(SIZE)
    region.protect(0, QUANTUM, mmap.PROT_READ)
    one, frugal = Client(actors(), region), Client(actors(), region)
    assert frugal.actor.call("budget", frugal.base, 32 * PAGE) == []
    assert (one.load(0), frugal.store(QUANTUM)) == ([0], [])
    assert one.store(0) == accerr(one.base)
    assert one.watched == frugal.watched == [(0, SIZE)]


def test_who_may_only_read_fills_it_too(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    reader = Client(actors(), region, mmap.PROT_READ)
    assert reader.load(5 * PAGE) == [0]
    assert reader.load(6 * PAGE) == [0]
    assert reader.store(6 * PAGE) == accerr(reader.base + 6 * PAGE)
    assert counted(region) == entries(region) == 2
    assert_whole(region)


@pytest.mark.parametrize("stopped", [False, True])
def test_pages_whose_entries_were_dropped_have_none(
    actors: Actors, make_region: Regions, stopped: bool
) -> None:
    """From then on pages do not tell of touches, so all first touches are ours, of all clients."""
    region = make_region(SIZE)
    one, other = Client(actors(), region), Client(actors(), region)
    for at in range(0, SIZE, PAGE * 2):
        assert one.store(at) == []
    assert other.store(QUANTUM) == []
    if stopped:
        stop(other.actor)
    filled = SIZE // PAGE // 2
    region.advise(0, RUN, verbs.MADV_DONTNEED)
    left = filled - RUN // PAGE // 2
    assert (entries(region), counted(region)) == (left, filled)
    assert region.stat()["rss_bytes"] == filled * PAGE, "the pages stay"
    assert one.watched == other.watched == [(0, SIZE)]
    if stopped:
        go_on(other.actor)
    assert one.load(2 * PAGE) == [1]
    assert (entries(region), counted(region)) == (left + 1, filled + 1)
    assert other.load(QUANTUM + PAGE) == [0]
    assert (entries(region), counted(region)) == (left + 2, filled + 2)
    assert_whole(region)


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_taken_away_is_gone(actors: Actors, make_region: Regions, stopped: bool) -> None:
    """Even for a process that cannot do anything itself, and whether the pages are there or not."""
    region = make_region(SIZE)
    client = Client(actors(), region)
    for at in range(0, SIZE, 2 * PAGE):
        client.store(at)
    if stopped:
        stop(client.actor)
    region.unmap(PAGE, RUN)
    region.protect(2 * RUN, RUN, mmap.PROT_READ)
    region.map(QUANTUM, QUANTUM)  # anew
    assert counted(region) == SIZE // PAGE // 2
    assert region.stat()["rss_bytes"] == (QUANTUM - RUN) // 2
    if stopped:
        go_on(client.actor)
    for at in (PAGE, 2 * PAGE):
        assert client.load(at) == maperr(client.base + at)
        with pytest.raises(OSError, match="Bad address"):
            client.actor.call("read", client.base + at, PAGE)
    for at in (2 * RUN, 2 * RUN + PAGE):
        assert client.store(at) == accerr(client.base + at)
        assert client.load(at) == [at == 2 * RUN]
    assert client.load(QUANTUM) == [0]
    assert client.store(QUANTUM + 5 * PAGE) == []
    assert counted(region) == SIZE // PAGE // 2 + 3
    region.protect(2 * RUN, RUN, mmap.PROT_READ | mmap.PROT_WRITE)
    assert client.store(2 * RUN + PAGE) == []
    assert client.store(2 * RUN + 3 * PAGE) == []
    if not stopped:
        region.protect(4 * RUN, RUN, 0)
        assert client.load(4 * RUN) == accerr(client.base + 4 * RUN)
    assert_whole(region)


def test_a_file_in_its_place(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    client = Client(actors(), region)
    client.store(0)
    client.store(3 * PAGE)
    file = os.memfd_create("file")
    os.pwrite(file, b"\7" * QUANTUM, 0)
    region.map(0, QUANTUM, flags=mmap.MAP_SHARED | 0x10, fd=file)  # MAP_FIXED
    os.close(file)
    assert counted(region) == 2
    assert client.load(PAGE) == [7]
    assert_whole(region)


def test_children(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    client = Client(actors(), region)
    client.store(0)
    with client.actor.fork() as child:
        child.finish()
        assert child.call("store", client.base + PAGE, 2) == []
        region.unmap(0, PAGE)
        assert child.call("load", client.base) == maperr(client.base)
        assert client.load(PAGE) == [2]
    assert counted(region) == 2


def test_pages_of_the_dead_are_counted(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    client = Client(actors(), region)
    for at in range(0, QUANTUM, PAGE):
        client.store(at)
    client.actor.kill()
    until(lambda: not region.describe("clients"), "its slot is free")
    assert counted(region) == entries(region) == QUANTUM // PAGE
    assert_whole(region)


def test_no_page_comes_after_an_unmap(actors: Actors, make_region: Regions) -> None:
    """While threads store everywhere; nor is one counted twice, or not at all."""
    pages = QUANTUM // PAGE
    region = make_region(SIZE)
    clients = [Client(actors(), region) for _ in range(2)]
    with Board() as board:
        board.phase(Board.THERE)
        for number, client in enumerate(clients):
            client.actor.call("hammer", client.actor.give(board.fd), number, client.base, pages, 1)
        for _ in range(6):
            for number in range(len(clients)):
                board.wait(number, 0, 200)
            board.phase(Board.CHANGING)
            region.unmap(0, QUANTUM)
            assert region.stat()["rss_bytes"] == 0
            before = counted(region)
            assert entries(region) == 0
            board.phase(Board.GONE)
            for number in range(len(clients)):
                board.wait(number, 1, 20)
            assert (region.stat()["rss_bytes"], counted(region)) == (0, before)
            board.phase(Board.CHANGING)
            region.map(0, QUANTUM)
            board.phase(Board.THERE)
        board.phase(Board.STOP)
        for client in clients:
            client.actor.call("join")
        assert [board.seen(number)[2] for number in range(len(clients))] == [0, 0]
    assert_whole(region)


def test_servers_killed_while_they_change_it(mount: Mount, actors: Actors) -> None:
    """The next one completes a change, or it has never begun; no page is without a mapping."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        client = Client(actors(), region)
    with Board() as board:
        board.phase(Board.CHANGING)
        fd = client.actor.give(board.fd)
        client.actor.call("hammer", fd, 0, client.base, QUANTUM // PAGE, 2)
        for _ in range(3):
            begun = threading.Semaphore(0)

            def change_all_the_time(begun: threading.Semaphore = begun) -> None:
                with contextlib.suppress(OSError), msharefs.open(path) as region:
                    while True:
                        region.unmap(0, QUANTUM)
                        begun.release()
                        region.map(0, QUANTUM)

            changer = threading.Thread(target=change_all_the_time)
            changer.start()
            for _ in range(3):
                assert begun.acquire(timeout=20)
            mount.kill()
            changer.join(20)
            mount.start()
            with msharefs.open(path) as region:
                # The client is back, too: what it was refused before the mapping came is undone.
                region.protect(QUANTUM, PAGE, READ_WRITE)
                there = region.maps()[0]["start"] == 0
                board.phase(Board.THERE if there else Board.GONE)
                board.wait(0, 0 if there else 1, 200)
                assert there or region.stat()["rss_bytes"] == 0
                board.phase(Board.CHANGING)
                region.map(0, QUANTUM)
        board.phase(Board.STOP)
        client.actor.call("join")
        assert board.seen(0)[2] == 0
    with msharefs.open(path) as region:
        assert entries(region) * PAGE == region.stat()["rss_bytes"]
        assert_whole(region)
