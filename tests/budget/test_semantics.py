"""A program's view of its memory does not change because page tables come and go."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from support.actor import MAP_FIXED, PAGE, READ_WRITE, Actor, Board, accerr, maperr
from support.audit import assert_whole
from support.spans import BUDGET, SLACK, SPAN, SPANS, STEP, TOUCHED, Client
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

MCL_CURRENT, MCL_ONFAULT = 1, 4  # mlockall(2)
MIDDLE = SPANS // 2 * SPAN
MIDDLE_PAGE = MIDDLE // PAGE


def test_read_only_memory_stays_so(client: Callable[..., Client]) -> None:
    made = client()
    made.stamp()
    made.region.map(MIDDLE, SPANS * SPAN - MIDDLE, prot=mmap.PROT_READ)
    for first in range(0, TOUCHED // 2, TOUCHED // 16):
        page = MIDDLE_PAGE + first * STEP
        assert made.wrong(page, TOUCHED // 16, STEP, passes=50, stamp=1) == 0, "new memory is zero"
        assert made.tables <= BUDGET + SLACK, "read-only spans leave no tables behind"
    assert made.seen["budget_grown"] == 0
    for _ in range(3):
        assert made.wrong(MIDDLE_PAGE, TOUCHED // 2, STEP, stamp=1) == 0
        assert made.wrong(0, TOUCHED // 2, STEP) == 0
    for span in range(0, SPANS // 2, 16):
        byte = made.base + MIDDLE + span * SPAN + 8
        assert made.actor.call("store", byte, 1) == accerr(byte)
        assert made.actor.call("load", byte) == [0]
    made.region.map(MIDDLE, SPAN)
    assert made.actor.call("store", made.base + MIDDLE, 1) == []


def test_rights_that_change_meanwhile(client: Callable[..., Client]) -> None:
    made = client()
    made.stamp()
    half = SPANS // 2 * SPAN
    for prot in (mmap.PROT_READ, READ_WRITE, mmap.PROT_READ, READ_WRITE):
        made.region.protect(0, half, prot)
        for first in range(0, TOUCHED // 2, TOUCHED // 16):
            assert made.wrong(first * STEP, TOUCHED // 16, STEP, passes=50) == 0
            assert made.tables <= max(BUDGET, made.seen["budget_bytes"]) + SLACK
        for span in range(0, SPANS // 2, 8):
            byte = made.base + span * SPAN + 9
            stored = made.actor.call("store", byte, 0)
            assert stored == ([] if prot & mmap.PROT_WRITE else accerr(byte))
        # Turns the queue, so that the refused pages went and came back.
        assert made.wrong(MIDDLE_PAGE, TOUCHED // 2, STEP) == 0
    assert made.seen["evicted_spans"] > SPANS
    assert made.wrong() == 0


def test_no_store_slips_through_while_a_read_only_span_goes(
    client: Callable[..., Client],
) -> None:
    poker = client(128 << 10)
    region = poker.region
    region.map(0, SPANS * SPAN, prot=mmap.PROT_READ)
    with Board() as board:
        board.phase(Board.THERE)
        fd = poker.actor.give(board.fd)
        # Dense enough that a span has mapped pages while it goes.
        place = (poker.base, 48 * SPAN // PAGE)
        poker.actor.call("poke", fd, 0, *place, 3, 1)
        until(lambda: board.seen(0)[1] > 3000 and poker.seen["evicted_spans"] > 200, "it pokes")
        board.phase(Board.STOP)
        poker.actor.call("join")
        assert board.seen(0)[2] == 0
    assert poker.wrong(0, TOUCHED, STEP, stamp=1) == 0


def test_what_is_locked_stays_locked(client: Callable[..., Client]) -> None:
    made = client()
    made.region.map(MIDDLE, SPANS * SPAN - MIDDLE, prot=mmap.PROT_READ)
    assert made.actor.call("mlockall", MCL_CURRENT | MCL_ONFAULT) == []
    locked = made.locked
    assert locked >= SPANS * SPAN
    for first in (0, MIDDLE_PAGE):
        assert made.wrong(first, TOUCHED // 2, STEP, passes=2, stamp=1) == 0
    assert (made.locked, made.seen["evicted_spans"]) == (locked, 0)


def test_holes_stay_holes(client: Callable[..., Client]) -> None:
    made = client()
    made.stamp()
    region = made.region
    hole = MIDDLE + 5 * PAGE
    region.unmap(hole, PAGE)
    for _ in range(3):
        assert made.actor.call("load", made.base + hole) == maperr(made.base + hole)
        for first in range(0, TOUCHED, TOUCHED // 8):  # this drives the hole's span out
            assert made.wrong(first * STEP, TOUCHED // 8, STEP, passes=20) == 0
        assert made.actor.call("store", made.base + hole, 1) == maperr(made.base + hole)
    region.map(hole, PAGE)
    assert made.actor.call("load", made.base + hole) == [0]
    assert made.actor.call("store", made.base + hole, 1) == []


def test_refused_accesses_count_as_page_tables(client: Callable[..., Client]) -> None:
    made = client()
    made.region.unmap(0, SPANS * SPAN)
    for span in range(SPANS):
        byte = made.base + span * SPAN
        assert made.actor.call("load", byte) == maperr(byte)
    assert made.tables <= BUDGET + SLACK


def test_memory_of_the_program_inside_the_window_is_left_alone(
    client: Callable[..., Client],
) -> None:
    """It should not do that, but it must not lose data thereby."""
    made = client()
    made.stamp()
    assert made.wrong(MIDDLE_PAGE, 8, STEP) == 0
    own = made.base + MIDDLE + 16 * PAGE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    made.actor.call("plain-map", own, 32 * PAGE, READ_WRITE, flags, -1, 0)
    assert made.actor.call("fill", own, 32 * PAGE, 3, 0) == []
    for _ in range(2):
        assert made.wrong(0, TOUCHED // 2, STEP) == 0
        assert made.wrong(MIDDLE_PAGE + 512, TOUCHED // 2 - 8, STEP) == 0
    assert made.actor.call("check", own, 32 * PAGE, 3, 0) == [0]
    assert made.actor.call("detach", made.base) == []


def test_many_processes_and_threads(
    client: Callable[..., Client], actors: Callable[[], Actor], region: msharefs.Region
) -> None:
    """Map, unmap, protect, fork and kill in the middle: nobody loses an addition or a page."""
    pages = 96 * SPAN // PAGE
    steady = [client(128 << 10) for _ in range(3)]
    steady[0].stamp(0, pages, 1)
    kept = (200 * SPAN // PAGE, 40 * SPAN // PAGE // STEP, STEP)
    steady[0].stamp(*kept)
    with Board() as board:
        board.phase(Board.THERE)

        def start(who: Client, number: int, threads: int) -> None:
            fd = who.actor.give(board.fd)
            who.actor.call("add", fd, number, who.base, pages, threads, number + 1)

        def adds(number: int) -> int:
            return board.seen(number)[0]

        for number, who in enumerate(steady):
            start(who, number, 2)
        killed = 0
        for round_ in range(6):
            victim = Client.attached(actors(), region)
            victim.budget(128 << 10)
            number = len(steady) + round_
            start(victim, number, 2)
            # In other places memory comes and goes.
            region.unmap(100 * SPAN, 50 * SPAN)
            region.map(100 * SPAN + round_ * PAGE, 40 * SPAN)
            region.protect(200 * SPAN, 40 * SPAN, READ_WRITE if round_ % 2 else mmap.PROT_READ)
            assert all(who.wrong(*kept) == 0 for who in steady)
            until(lambda number=number: adds(number) > 200, "the victim adds")
            child = victim.fork()
            assert child.actor.finish() == []
            assert child.wrong(0, pages // STEP, STEP) == 0
            child.actor.end()
            victim.actor.kill()
            killed += 2
        mark = [adds(number) for number in range(len(steady))]
        until(
            lambda: all(adds(number) > mark[number] + 500 for number in range(len(steady))),
            "the others go on",
        )
        board.phase(Board.STOP)
        for who in steady:
            who.actor.call("join")
        assert sum(board.seen(number)[2] for number in range(len(steady) + 6)) == 0
        added = sum(adds(number) for number in range(len(steady) + 6))
    assert all(who.seen["refaulted_spans"] > 0 for who in steady)
    total = counted(region, pages)
    # A thread that was killed may have added and not yet counted it.
    assert added <= total <= added + killed
    until(lambda: len(region.describe("clients")) == len(steady), "the dead are gone")
    assert_whole(region)


def counted(region: msharefs.Region, pages: int) -> int:
    """The sums in the second words of pages, as a process without a budget reads them."""
    pid = os.getpid()
    with region.attach(prot=mmap.PROT_READ) as view:
        words = view.cast("Q")
        assert any(entry["pid"] == pid for entry in region.describe("clients"))
        total = sum(words[page * PAGE // 8 + 1] for page in range(pages))
        words.release()
    region.detach()
    return total
