"""Memory that a program has put into its window, where it unmapped a part, stays as it is.

Nobody sees such a munmap(2) without the preload library. What others change in the region there, or
a fork or detach, concerns only what is left of the window.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

from support.actor import MAP_FIXED, PAGE, READ_WRITE, Actor, Fault, accerr, maperr
from support.audit import assert_whole
from support.memory import QUANTUM
from support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import msharefs

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]
    Change = Callable[[msharefs.Region, int], None]

pytestmark = pytest.mark.mount("quantum=2M")

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
SIZE = 64 * PAGE
PAGES = (0, 17, 19, 22, 40)
AT = 20 * PAGE  # in the middle of a block of 64 KiB, and not at its beginning
NONE, READ, EXEC = 0, mmap.PROT_READ, mmap.PROT_EXEC
DONTNEED, DONTFORK = mmap.MADV_DONTNEED, mmap.MADV_DONTFORK


def no_access(region: msharefs.Region, _: int) -> None:
    region.protect(0, SIZE, NONE)


def other_rights(region: msharefs.Region, _: int) -> None:
    region.protect(0, SIZE, READ)
    region.protect(0, SIZE, READ | EXEC)
    region.protect(0, SIZE, READ_WRITE)


def a_file(region: msharefs.Region, fd: int) -> None:
    region.map(0, SIZE, flags=mmap.MAP_SHARED | MAP_FIXED, fd=fd)


def a_file_for_a_while(region: msharefs.Region, fd: int) -> None:
    region.map(0, SIZE, flags=mmap.MAP_SHARED | MAP_FIXED, fd=fd)
    region.unmap(0, SIZE)


def nothing(region: msharefs.Region, _: int) -> None:
    region.unmap(0, SIZE)


def dropped(region: msharefs.Region, _: int) -> None:
    region.advise(0, SIZE, DONTNEED)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("object", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, bytes([9]) * SIZE, 0)
    yield fd
    os.close(fd)


def relative(answer: list[int] | Fault, base: int) -> list[int] | Fault:
    """The answer, with an address that does not depend on where the window is."""
    if isinstance(answer, Fault):
        return Fault(answer.number, answer.code, answer.address - base)
    return answer


class Window:
    """A process that has two pages of its own in its window: one it may write, one it may not."""

    def __init__(self, actor: Actor, region: msharefs.Region) -> None:
        self.actor = actor
        self.base = actor.attach(actor.give(region.fd))
        assert actor.call("fill", self.base, SIZE, 1, 0) == []
        self.mine = self.base + AT
        actor.call("plain-unmap", self.mine, 2 * PAGE)
        actor.call("plain-map", self.mine, 2 * PAGE, READ_WRITE, PRIVATE, -1, 0)
        for page in range(2):
            assert actor.call("store", self.mine + page * PAGE, 55) == []
        actor.call("plain-protect", self.mine + PAGE, PAGE, READ)

    def check(self, actor: Actor | None = None) -> None:
        actor = actor or self.actor
        assert actor.call("load", self.mine) == [55]
        assert actor.call("load", self.mine + PAGE) == [55]
        assert actor.call("store", self.mine + PAGE, 1) == accerr(self.mine + PAGE)


@pytest.fixture
def region(make_region: Regions) -> msharefs.Region:
    made = make_region(QUANTUM, mapped=False)
    made.map(0, SIZE)
    return made


CHANGES = (no_access, other_rights, a_file, a_file_for_a_while, nothing, dropped)


@pytest.mark.parametrize("change", CHANGES)
def test_others_change_the_region(
    actors: Actors, region: msharefs.Region, file: int, change: Change
) -> None:
    window = Window(actors(), region)
    change(region, file)
    # Faults beside it: blocks of a file, guard pages. They are answered as anybody's.
    around = [window.actor.call("load", window.base + page * PAGE) for page in PAGES]
    window.check()
    other = actors()
    base = other.attach(other.give(region.fd))
    expected = [other.call("load", base + page * PAGE) for page in PAGES]
    assert [relative(got, window.base) for got in around] == [
        relative(got, base) for got in expected
    ]
    region.unmap(0, QUANTUM)
    region.map(0, SIZE)
    assert window.actor.call("store", window.base + 19 * PAGE, 3) == []
    assert other.call("load", base + 19 * PAGE) == [3]
    window.check()
    assert_whole(region)


# After a file for a while, it cannot be told from a block of that file (native/client/own.c).
@pytest.mark.parametrize("change", [each for each in CHANGES if each is not a_file_for_a_while])
def test_memory_that_userfaultfd_takes(
    actors: Actors, region: msharefs.Region, file: int, change: Change
) -> None:
    """Shared memory of the program, in a part that was left to Linux and is watched again."""
    filler, actor = actors(), actors()
    assert filler.call("fill", filler.attach(filler.give(region.fd)), SIZE, 1, 0) == []
    base = actor.attach(actor.give(region.fd))
    actor.call("load", base)
    assert watched(actor.pid, base, SIZE) == [], "left to Linux"
    mine = base + AT
    actor.call("plain-map", mine, 4 * PAGE, READ_WRITE, SHARED, -1, 0)
    assert actor.call("store", mine, 55) == []
    change(region, file)
    # A page that is mapped, for writing, and two that have never been touched.
    assert actor.call("store", mine, 56) == []
    assert actor.call("load", mine + PAGE) == [0]
    assert actor.call("store", mine + 2 * PAGE, 57) == []
    assert [actor.call("load", mine + page * PAGE) for page in range(3)] == [[56], [0], [57]]
    around = [actor.call("load", base + page * PAGE) for page in (0, 19, 24, 40)]
    other = actors()
    there = other.attach(other.give(region.fd))
    expected = [other.call("load", there + page * PAGE) for page in (0, 19, 24, 40)]
    assert [relative(got, base) for got in around] == [relative(got, there) for got in expected]
    assert_whole(region)


def test_a_child_has_it_too(actors: Actors, region: msharefs.Region) -> None:
    window = Window(actors(), region)
    child = window.actor.fork()
    assert child.finish() == []
    window.check(child)
    assert child.call("store", window.base, 4) == []
    assert window.actor.call("load", window.base) == [4]
    region.protect(0, SIZE, READ)
    assert child.call("store", window.base, 4) == accerr(window.base)
    window.check(child)
    child.end()


def test_it_outlives_the_attachment(actors: Actors, region: msharefs.Region) -> None:
    window = Window(actors(), region)
    assert window.actor.call("detach", window.base) == []
    window.check()
    # And the rest of the window is free.
    for place in (window.base, window.mine + 2 * PAGE):
        got = window.actor.call("plain-map", place, PAGE, READ_WRITE, PRIVATE & ~MAP_FIXED, -1, 0)
        assert got == [place]


def test_a_window_that_children_are_not_to_have(actors: Actors, region: msharefs.Region) -> None:
    """MADV_DONTFORK, which only Linux has seen."""
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("plain-advise", base, QUANTUM, DONTFORK)
    child = actor.fork()
    assert child.finish() == []
    assert child.call("load", base) == maperr(base)
    child.end()
    assert {each["pid"] for each in region.describe("clients")} == {actor.pid}
    assert actor.call("store", base, 1) == []
