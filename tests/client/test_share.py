"""All processes read what one of them writes; and the tables and faults that this takes."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.actor import MAP_FIXED, PAGE
from support.audit import assert_whole
from support.memory import QUANTUM

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

pytestmark = pytest.mark.smoke
SIZE = 2 * QUANTUM
PAGES = SIZE // PAGE


def filled(counters: dict[str, int]) -> int:
    """Entries filled by first touches, and ahead of them."""
    return counters["faults"] + counters["prefaulted"]


@pytest.mark.parametrize("count", [2, 8, pytest.param(64, marks=pytest.mark.slow)])
def test_all_see_what_one_wrote(actors: Actors, make_region: Regions, count: int) -> None:
    region = make_region(SIZE)
    crowd = [actors() for _ in range(count)]
    fds = [actor.give(region.fd) for actor in crowd]
    bases = [actor.attach(fd) for actor, fd in zip(crowd, fds, strict=True)]
    writer, *readers = zip(crowd, bases, strict=True)
    assert writer[0].call("fill", writer[1], SIZE, 1, 0) == []
    for actor, base in readers:
        actor.start("check", base, SIZE, 1, 0)
    assert [actor.finish() for actor, _ in readers] == [[0]] * (count - 1)

    stat = region.stat()
    assert stat["clients"] == count
    assert stat["rss_bytes"] == SIZE
    assert filled(stat["counters"]) == PAGES, "each page is filled once, for all"
    assert stat["counters"]["links"] == 2 * count, "one for each process and quantum"
    assert stat["counters"]["segv"] == 0
    assert [client["links"] for client in region.describe("clients")] == [2] * count
    assert_whole(region)


@pytest.mark.parametrize("count", [2, 8])
def test_all_write_at_once(actors: Actors, make_region: Regions, count: int) -> None:
    """Each touches its share of every page table, so that they race for the frames."""
    region = make_region(SIZE)
    crowd = [actors() for _ in range(count)]
    bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
    share = PAGES // count * PAGE
    for number, (actor, base) in enumerate(zip(crowd, bases, strict=True)):
        actor.start("fill", base + number * share, share, 3, number * share // PAGE)
    assert [actor.finish() for actor in crowd] == [[]] * count
    for actor, base in zip(crowd, bases, strict=True):
        actor.start("check", base, SIZE, 3, 0)
    assert [actor.finish() for actor in crowd] == [[0]] * count
    stat = region.stat()
    assert filled(stat["counters"]) == PAGES
    assert stat["table_frames"] == {"pgd": 1, "pud": 1, "pmd": 1, "pte": 2}
    assert_whole(region)


def test_all_fault_on_the_same_pages_at_once(actors: Actors, make_region: Regions) -> None:
    """A page is filled once, whichever process is first."""
    region = make_region(SIZE)
    crowd = [actors() for _ in range(4)]
    bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
    for actor, base in zip(crowd, bases, strict=True):
        actor.start("fill", base, SIZE, 9, 0)  # the same words
    assert [actor.finish() for actor in crowd] == [[]] * len(crowd)
    assert crowd[0].call("check", bases[0], SIZE, 9, 0) == [0]
    assert filled(region.stat()["counters"]) == PAGES
    assert_whole(region)


def test_python_reads_what_c_wrote(actors: Actors, make_region: Regions) -> None:
    region = make_region(SIZE)
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("store", base + PAGE + 5, 0xC3)
    view = region.attach()
    assert (view[PAGE + 5], view[PAGE + 6], len(view)) == (0xC3, 0, SIZE)
    view[7:10] = b"abc"
    assert actor.call("load", base + 9) == [ord("c")]
    region.detach(view)


@pytest.mark.mount("quantum=512G")
def test_a_quantum_of_the_kernels(mount: Mount, actors: Actors) -> None:
    """512 GiB: pages at both ends and in the middle, attached at other addresses by each."""
    quantum = 512 << 30
    offsets = [0, 1 << 30, quantum - PAGE, quantum, 2 * quantum - PAGE]
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 * quantum)
        for offset in offsets:
            region.map(offset, PAGE)
        crowd = [(actors(), place * quantum) for place in (70, 80, 90)]
        for number, (actor, base) in enumerate(crowd):
            fd = actor.give(region.fd)
            flags = mmap.MAP_SHARED | MAP_FIXED
            assert actor.attach(fd, base, flags=flags) == base
            assert actor.call("store", base + offsets[number], number + 1) == []
        for actor, base in crowd:
            values = [actor.call("load", base + offset) for offset in offsets]
            assert values == [[1], [2], [3], [0], [0]]
        stat = region.stat()
        assert stat["counters"]["links"] == 2 * len(crowd), "one for each process and quantum"
        assert stat["counters"]["faults"] == len(offsets)
        assert stat["table_frames"] == {"pgd": 1, "pud": 2, "pmd": 5, "pte": 5}
        assert_whole(region)


@pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")
def test_without_filling_ahead_each_page_is_a_fault(mount: Mount, actors: Actors) -> None:
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
        crowd = [actors() for _ in range(2)]
        bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
        assert crowd[0].call("fill", bases[0], QUANTUM, 1, 0) == []
        assert crowd[1].call("check", bases[1], QUANTUM, 1, 0) == [0]
        counters = region.stat()["counters"]
        assert (counters["faults"], counters["prefaulted"]) == (QUANTUM // PAGE, 0)
        clients = region.describe("clients")
        assert [client["faults"] for client in clients] == [QUANTUM // PAGE, 0]
        assert [client["materialised_pages"] for client in clients] == [QUANTUM // PAGE] * 2


def test_each_fault_in_a_span_reaches_further(actors: Actors, make_region: Regions) -> None:
    """Pages that others filled: 128 KiB around the first, 512 KiB, all; and none twice.

    In read-only memory, since in writable memory Linux would map the rest by itself.
    """
    region = make_region(QUANTUM)
    writer, reader = actors(), actors()
    assert writer.call("fill", writer.attach(writer.give(region.fd)), QUANTUM, 1, 0) == []
    base = reader.attach(reader.give(region.fd))
    region.protect(0, QUANTUM, mmap.PROT_READ)
    mapped = []
    for page in (40, 500, 200, 300):
        assert reader.call("check", base + page * PAGE, PAGE, 1, page) == [0]
        (client,) = (c for c in region.describe("clients") if c["pid"] == reader.pid)
        mapped.append(client["materialised_pages"])
    assert mapped == [32, 32 + 128, 512, 512]


def test_page_tables_are_paid_once(actors: Actors, make_region: Regions) -> None:
    """The figure that matters: more processes, but no more tables."""
    region = make_region(8 * QUANTUM)
    sizes = []
    for _ in range(4):
        actor = actors()
        base = actor.attach(actor.give(region.fd))
        assert actor.call("fill", base, 8 * QUANTUM, 1, 0) == []
        sizes.append(region.stat()["page_table_bytes"])
    assert sizes == [PAGE * (3 + 8)] * 4
