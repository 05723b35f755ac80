"""UNMAP is in force in every attached process before it returns, whatever they do meanwhile."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from support import namespace, proc
from support.actor import PAGE, Board, maperr
from support.audit import assert_whole
from support.calls import refused
from support.memory import QUANTUM
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

RANGE = 32 * PAGE
ENOUGH = 20  # accesses by each process in each phase


def wait_for(board: Board, counts: range, what: int) -> None:
    """Every process has made progress: `what` is the index of a count in `Board.seen`."""
    before = [board.seen(number)[what] for number in counts]
    for number in counts:
        until(
            lambda number=number: board.seen(number)[what] >= before[number] + ENOUGH,
            f"process {number} goes on",
        )


@pytest.mark.parametrize(
    ("processes", "threads"), [(1, 1), (2, 2), pytest.param(8, 2, marks=pytest.mark.slow)]
)
def test_while_all_hammer_the_range(
    actors: Actors, make_region: Regions, processes: int, threads: int
) -> None:
    """From the return of UNMAP to the next CREATE_MAPPING not one store goes through."""
    region = make_region(QUANTUM, mapped=False)
    region.map(4 * PAGE, RANGE)
    crowd = [actors() for _ in range(processes)]
    numbers = range(processes)
    with Board() as board:
        board.phase(Board.THERE)
        for number, actor in enumerate(crowd):
            base = actor.attach(actor.give(region.fd))
            fd = actor.give(board.fd)
            actor.call("hammer", fd, number, base + 4 * PAGE, RANGE // PAGE, threads)
        for _ in range(5):
            wait_for(board, numbers, 0)
            board.phase(Board.CHANGING)
            region.unmap(4 * PAGE, RANGE)
            board.phase(Board.GONE)
            assert region.stat()["rss_bytes"] == 0
            wait_for(board, numbers, 1)
            assert region.stat()["rss_bytes"] == 0, "nobody brought a page back"
            board.phase(Board.CHANGING)
            region.map(4 * PAGE, RANGE)
            board.phase(Board.THERE)
        wait_for(board, numbers, 0)
        # In one step: memory is exchanged for other memory; nobody may notice except by its zeros.
        for _ in range(5):
            region.map(4 * PAGE, RANGE)
            wait_for(board, numbers, 0)
        board.phase(Board.STOP)
        for actor in crowd:
            actor.call("join")
        assert [board.seen(number)[2] for number in numbers] == [0] * processes
    assert_whole(region)


def test_memory_goes_back(actors: Actors, make_region: Regions) -> None:
    size = 8 * QUANTUM
    region = make_region(size)
    actor, other = actors(), actors()
    base, view = (who.attach(who.give(region.fd)) for who in (actor, other))
    before = shmem()
    assert actor.call("fill", base, size, 1, 0) == []
    assert other.call("check", view, size, 1, 0) == [0]
    assert region.stat()["rss_bytes"] == size
    assert shmem() - before >= size
    region.unmap(0, size // 2)
    assert region.stat()["rss_bytes"] == size // 2
    region.unmap(size // 2, size // 2)
    stat = region.stat()
    assert stat["rss_bytes"] == 0
    assert stat["table_frames"] == {"pgd": 1, "pud": 0, "pmd": 0, "pte": 0}
    assert stat["vmas"] == 0
    assert stat["counters"]["unmaps"] == 2
    assert shmem() - before < 0.1 * size
    # The real page tables do not map it either.
    for who, start in ((actor, base), (other, view)):
        assert resident(who.pid, start) == 0
        assert who.call("load", start) == maperr(start)
    assert_whole(region)


def shmem() -> int:
    """Bytes of memory that the files of our tmpfs take, the regions' among them."""
    found = os.statvfs(namespace.SHM)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def resident(pid: int, base: int) -> int:
    """Bytes of the mapping at `base` that a process has in its page tables."""
    (mapping,) = (each for each in proc.smaps(pid) if each.start == base)
    return mapping.figure("Rss")


def test_a_part_in_the_middle(actors: Actors, make_region: Regions) -> None:
    region = make_region(2 * QUANTUM)
    crowd = [actors() for _ in range(2)]
    bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
    crowd[0].call("fill", bases[0], 2 * QUANTUM, 1, 0)
    start, size = QUANTUM - 3 * PAGE, 6 * PAGE  # in two page tables
    region.unmap(start, size)
    assert region.stat()["rss_bytes"] == 2 * QUANTUM - size
    after = start + size
    for actor, base in zip(crowd, bases, strict=True):
        assert actor.call("check", base, start, 1, 0) == [0]
        rest = 2 * QUANTUM - after
        assert actor.call("check", base + after, rest, 1, after // PAGE) == [0]
        for at in (base + start, base + after - 1):
            assert actor.call("load", at) == maperr(at)
    assert [(vma["start"], vma["end"]) for vma in region.maps()] == [
        (0, start),
        (after, 2 * QUANTUM),
    ]
    assert_whole(region)


def test_the_end_of_a_page_counts_as_the_page(actors: Actors, make_region: Regions) -> None:
    region = make_region(QUANTUM)
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    region.unmap(0, PAGE + 1)
    assert actor.call("load", base + 2 * PAGE - 1) == maperr(base + 2 * PAGE - 1)
    assert actor.call("load", base + 2 * PAGE) == [0]
    region.map(0, 1)
    assert actor.call("load", base + PAGE - 1) == [0]
    assert actor.call("load", base + PAGE) == maperr(base + PAGE)


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 0),
        (1, PAGE),
        (QUANTUM, PAGE),
        (0, QUANTUM + 1),
        (QUANTUM - PAGE, 2 * PAGE),
        (0, 2**64 - 1),
    ],
)
def test_what_is_refused_changes_nothing(
    actors: Actors, make_region: Regions, offset: int, size: int
) -> None:
    region = make_region(QUANTUM)
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("fill", base, QUANTUM, 1, 0)
    with refused(errno.EINVAL):
        region.unmap(offset, size)
    assert actor.call("check", base, QUANTUM, 1, 0) == [0]


def test_a_hole_may_be_unmapped(make_region: Regions) -> None:
    region = make_region(QUANTUM, mapped=False)
    region.unmap(PAGE, PAGE)
    assert region.maps() == []
    region.map(0, PAGE)
    region.map(2 * PAGE, PAGE)
    memory = region.attach()
    memory[0] = memory[2 * PAGE] = 1
    region.unmap(PAGE, PAGE)
    assert (memory[0], memory[2 * PAGE]) == (1, 1)
    assert region.stat()["rss_bytes"] == 2 * PAGE
