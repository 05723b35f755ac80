"""A child is attached before fork() returns in it; exec and exit end attachments."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from msharefs import verbs

from support import cc
from support.actor import PAGE, SOURCES, Actor, Board, maperr
from support.audit import assert_whole
from support.memory import QUANTUM
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import msharefs

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]


@pytest.fixture
def family(actors: Actors, make_region: Regions) -> tuple[Actor, int, msharefs.Region]:
    """A process that is attached, its address, and the region: all mapped but its first page."""
    region = make_region(2 * QUANTUM)
    region.unmap(0, PAGE)
    parent = actors()
    base = parent.attach(parent.give(region.fd))
    parent.call("fill", base + PAGE, 8 * PAGE, 1, 1)
    return parent, base, region


def clients(region: msharefs.Region) -> set[int]:
    return {client["pid"] for client in region.describe("clients")}


def test_a_child_reads_at_once(family: tuple[Actor, int, msharefs.Region]) -> None:
    """The load is the first thing the child does."""
    parent, base, region = family
    parent.call("store", base + 20 * PAGE, 99)
    with parent.fork(base + 20 * PAGE) as child:
        assert child.finish() == [99]
        assert child.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
        until(lambda: clients(region) == {parent.pid, child.pid}, "the child is known")


def test_a_child_touches_first(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, _ = family
    far = base + QUANTUM + 5 * PAGE  # in a table that nobody has filled
    with parent.fork(far) as child:
        assert child.finish() == [0]
        assert child.call("store", far, 7) == []
        assert parent.call("load", far) == [7]


def test_a_child_finds_holes(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, region = family
    with parent.fork(base) as child:
        assert child.finish() == maperr(base)
        region.unmap(PAGE, PAGE)
        for actor in (child, parent):
            assert actor.call("load", base + PAGE) == maperr(base + PAGE)
        region.map(0, 2 * PAGE)
        for actor in (child, parent):
            assert actor.call("store", base, 1) == []
            assert actor.call("load", base) == [1]
            assert actor.call("load", base + PAGE) == [0]


def test_a_hole_that_the_parent_was_refused_is_the_childs_own_affair(
    family: tuple[Actor, int, msharefs.Region],
) -> None:
    """The parent's guard pages must not come along."""
    parent, base, region = family
    assert parent.call("load", base) == maperr(base)
    with parent.fork() as child:
        assert child.finish() == []
        region.map(0, PAGE)
        assert child.call("store", base, 2) == []
        assert parent.call("load", base) == [2]


def test_grandchildren(family: tuple[Actor, int, msharefs.Region]) -> None:
    actor, base, region = family
    line = []
    for depth in range(5):
        actor = actor.fork(base + (1 + depth) * PAGE)
        assert actor.finish() == [(1 + depth) << 16 & 0xFF]  # the first byte of the page's words
        line.append(actor)
        assert actor.call("store", base + QUANTUM, depth) == []
    for actor in line:
        assert actor.call("load", base + QUANTUM) == [4]
    until(lambda: len(clients(region)) == 6, "all are known")
    for actor in line:
        actor.end()
    until(lambda: len(clients(region)) == 1, "all are gone")
    assert_whole(region)


@pytest.mark.slow
def test_a_hundred_children_at_once(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, region = family
    children = []
    for _ in range(100):
        parent.start("fork", base + 3 * PAGE)
        children.append(parent.forked())
    try:
        for number, child in enumerate(children):
            assert child.finish() == parent.call("load", base + 3 * PAGE)
            child.start("store", base + QUANTUM + number * PAGE, number)
        for child in children:
            assert child.finish() == []
        values = [parent.call("load", base + QUANTUM + n * PAGE) for n in range(100)]
        assert values == [[n] for n in range(100)]
        until(lambda: len(clients(region)) == 101, "all are known")
    finally:
        for child in children:
            child.end()
    for child in children:
        assert parent.number("wait", child.pid) == 0
    until(lambda: clients(region) == {parent.pid}, "all are gone")
    assert parent.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
    assert_whole(region)


def test_fork_while_other_threads_fault(
    family: tuple[Actor, int, msharefs.Region], make_region: Regions
) -> None:
    """No lock of ours may be held in the child for ever."""
    parent, _, _ = family
    region = make_region(32 * QUANTUM)
    base = parent.attach(parent.give(region.fd))
    with Board() as board:
        board.phase(Board.THERE)
        flooded = base + QUANTUM  # what is compared is not theirs to change
        region.advise(0, PAGE, verbs.MADV_DONTNEED)  # so that first touches are faults of ours
        parent.call(
            "flood", parent.give(board.fd), 0, flooded, 31 * QUANTUM // PAGE, PAGE, 4, 1
        )  # fmt: skip
        for number in range(20):
            assert parent.call("store", base + number * PAGE, number + 1) == []
            with parent.fork(base + number * PAGE) as child:
                assert child.finish() == parent.call("load", base + number * PAGE)
                assert child.call("store", base + number * PAGE + 9, number) == []
                assert parent.call("load", base + number * PAGE + 9) == [number]
            assert parent.number("wait", child.pid) == 0
        board.phase(Board.STOP)
        parent.call("join")
    until(lambda: clients(region) == {parent.pid}, "all children are gone")
    assert_whole(region)


def test_the_parent_is_not_disturbed(family: tuple[Actor, int, msharefs.Region]) -> None:
    """However the child ends."""
    parent, base, region = family
    for number in range(12):
        with parent.fork(base + PAGE) as child:
            child.finish()
            if number % 3 == 0:
                assert child.call("detach", base) == []
                assert child.call("load", base + PAGE) == maperr(base + PAGE)
            elif number % 3 == 1:
                child.kill()
        status = parent.number("wait", child.pid)
        assert os.WIFSIGNALED(status) == (number % 3 == 1)
        assert parent.call("store", base + (30 + number) * PAGE, 5) == []
    until(lambda: clients(region) == {parent.pid}, "the children are gone")
    assert parent.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
    assert_whole(region)


def test_a_child_outlives_its_parent(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, region = family
    with parent.fork(base + PAGE) as child:
        child.finish()
        parent.kill()
        until(lambda: clients(region) == {child.pid}, "the parent is gone")
        assert child.call("store", base + QUANTUM, 3) == []
        assert child.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
        region.unmap(QUANTUM, PAGE)
        assert child.call("load", base + QUANTUM) == maperr(base + QUANTUM)
        with child.fork(base + PAGE) as grandchild:
            assert grandchild.finish() == child.call("load", base + PAGE)


def test_a_child_may_attach_and_detach(
    family: tuple[Actor, int, msharefs.Region], make_region: Regions
) -> None:
    parent, base, region = family
    other = make_region(QUANTUM)
    with parent.fork() as child:
        child.finish()
        assert child.call("detach", base) == []
        second = child.attach(child.give(other.fd))
        assert child.call("store", second, 1) == []
        until(lambda: clients(region) == {parent.pid}, "the child has detached")
        assert clients(other) == {child.pid}
        third = child.attach(child.give(region.fd), base)
        assert child.call("check", third + PAGE, 8 * PAGE, 1, 1) == [0]


def test_detach_at_once(family: tuple[Actor, int, msharefs.Region]) -> None:
    """The server's answers come in order; the answer to the fork must not pass for the detach's."""
    parent, base, region = family
    for _ in range(50):
        parent.start("fork", base, 1)
        with parent.forked() as child:
            assert child.finish() == []
            assert clients(region) == {parent.pid}
            assert child.call("load", base + PAGE) == maperr(base + PAGE)


def test_exec_ends_the_attachment(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, region = family
    assert parent.call("exec") == []
    until(lambda: clients(region) == set(), "the attachment is gone with the program")
    assert parent.call("load", base + PAGE) == maperr(base + PAGE)
    again = parent.attach(parent.give(region.fd))
    assert parent.call("check", again + PAGE, 8 * PAGE, 1, 1) == [0]
    assert clients(region) == {parent.pid}


def test_exec_in_a_child(family: tuple[Actor, int, msharefs.Region]) -> None:
    parent, base, region = family
    with parent.fork(base + PAGE) as child:
        child.finish()
        assert child.call("exec") == []
        until(lambda: clients(region) == {parent.pid}, "the child's attachment is gone")
        assert parent.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]


def test_programs_are_started_as_ever(family: tuple[Actor, int, msharefs.Region]) -> None:
    """posix_spawn(3): a vfork() underneath, no handlers run."""
    parent, base, region = family
    for _ in range(10):
        assert parent.call("spawn") == [0]
    assert clients(region) == {parent.pid}
    assert parent.call("store", base + QUANTUM, 6) == []


def test_slots_are_used_again(family: tuple[Actor, int, msharefs.Region]) -> None:
    """A region has room for so many at a time, not for so many ever."""
    parent, base, region = family
    highest = 0
    for _ in range(30):
        with parent.fork(base + PAGE) as child:
            child.finish()
            until(lambda pid=child.pid: pid in clients(region), "the child is known")
            highest = max(highest, len(clients(region)))
        parent.call("wait", child.pid)
        until(lambda: clients(region) == {parent.pid}, "the child is gone")
    assert highest == 2
    assert region.stat()["counters"]["links"] >= 31, "what they did is still counted"


def test_killed_in_a_row(family: tuple[Actor, int, msharefs.Region]) -> None:
    """Killed before, while and after the server hears of them."""
    parent, base, region = family
    for _ in range(40):
        child = parent.fork(base + PAGE)
        os.kill(child.pid, signal.SIGKILL)
        assert os.WTERMSIG(parent.number("wait", child.pid)) == signal.SIGKILL
        child.end()
    until(lambda: clients(region) == {parent.pid}, "none of the dead is listed")
    assert parent.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
    assert_whole(region)


def test_a_lock_of_the_program_that_fork_waits_for(make_region: Regions, tmp_path: Path) -> None:
    """Its holder faults and unmaps meanwhile, which must not wait for fork()."""
    program = cc.build(SOURCES / "forker.c", tmp_path / "forker")
    region, other = make_region(), make_region()
    subprocess.run([program, region.path, other.path], check=True, timeout=20)
    assert_whole(region)
