"""Every verb while a process that has the range attached is stopped.

Either the verb is in force before it returns, or it is EBUSY with the name of the process, and
nothing has changed for anybody.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from msharefs import verbs

from .conftest import PAGE, SIZE, Process, entries
from support.actor import accerr, maperr
from support.stopping import go_on, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import msharefs

    Verb = Callable[[msharefs.Region, int, int], object]

# Only the stopped are asked without an answer here: none of these verbs waits for one that goes on.
pytestmark = pytest.mark.mount(
    "quantum=2M", "fault_around=1", seconds={"revocation.ANSWER_SECONDS": 0.2}
)

FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
READ = mmap.PROT_READ
BIND = 2
SOME = 16 * PAGE  # what there is of the file


# A stopped process can give up what it has mapped only by itself.
REFUSED: dict[str, Verb] = {
    "COLD": lambda r, at, size: r.advise(at, size, verbs.MADV_COLD),
    "PAGEOUT": lambda r, at, size: r.advise(at, size, verbs.MADV_PAGEOUT),
    "DONTNEED": lambda r, at, size: r.advise(at, size, verbs.MADV_DONTNEED),
    "GUARD_INSTALL": lambda r, at, size: r.advise(at, size, verbs.MADV_GUARD_INSTALL),
    "protect": lambda r, at, size: r.protect(at, size, 0),
}
# What is in force then, by the flags of its mapping in `maps`.
KEPT: dict[str, tuple[Verb, list[str]]] = {
    "RANDOM": (lambda r, at, size: r.advise(at, size, verbs.MADV_RANDOM), ["random"]),
    "SEQUENTIAL": (lambda r, at, size: r.advise(at, size, verbs.MADV_SEQUENTIAL), ["sequential"]),
    "NORMAL": (lambda r, at, size: r.advise(at, size, verbs.MADV_NORMAL), []),
    "HUGEPAGE": (lambda r, at, size: r.advise(at, size, verbs.MADV_HUGEPAGE), ["hugepage"]),
    "NOHUGEPAGE": (lambda r, at, size: r.advise(at, size, verbs.MADV_NOHUGEPAGE), ["nohugepage"]),
    "WILLNEED": (lambda r, at, size: r.advise(at, size, verbs.MADV_WILLNEED), ["nohugepage"]),
    "GUARD_REMOVE": (
        lambda r, at, size: r.advise(at, size, verbs.MADV_GUARD_REMOVE), ["nohugepage"]
    ),
    "POPULATE_READ": (
        lambda r, at, size: r.advise(at, size, verbs.MADV_POPULATE_READ), ["nohugepage"]
    ),
    "POPULATE_WRITE": (
        lambda r, at, size: r.advise(at, size, verbs.MADV_POPULATE_WRITE), ["nohugepage"]
    ),
    "lock": (lambda r, at, size: r.lock(at, size), ["nohugepage", "locked"]),
    "sync": (lambda r, at, size: r.sync(at, size), ["nohugepage", "locked"]),
    "query": (lambda r, at, size: r.query(at, size), ["nohugepage", "locked"]),
    "unlock": (lambda r, at, size: r.unlock(at, size), ["nohugepage"]),
    "mbind": (lambda r, at, size: r.mbind(at, size, BIND, [0]), ["nohugepage", "bind:0"]),
    "seal": (lambda r, at, size: r.seal(at, size), ["nohugepage", "bind:0", "sealed"]),
}  # fmt: skip


@pytest.fixture(params=["anonymous", "memfd", "file"])
def range_(
    request: pytest.FixtureRequest, region: msharefs.Region, two: list[Process]
) -> Iterator[tuple[int, int]]:
    """Offset and size of memory of that kind, which both processes have written; one is stopped."""
    at, size = 0, SIZE
    if request.param != "anonymous":
        at, size = SIZE, SOME
        if request.param == "memfd":
            fd = os.memfd_create("object")
        else:
            path = request.getfixturevalue("tmp_path") / "file"
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.truncate(fd, SOME)
        region.map(at, size, mmap.PROT_READ | mmap.PROT_WRITE, FILE, fd)
        os.close(fd)
        for process in two:
            assert process.actor.call("fill", process.base + at, size, 7, 0) == []
    stop(two[1].actor)
    yield at, size
    go_on(two[1].actor)


def holds(process: Process, at: int, size: int) -> bool:
    return process.actor.call("check", process.base + at, size, 7, 0) == [0]


def state(region: msharefs.Region, two: list[Process]) -> object:
    """Everything that a verb may change; of the processes what they have mapped, too."""
    stat = region.stat()
    mapped = [process.mapped() for process in two]
    return region.maps(), entries(region), stat["rss_bytes"], mapped


def test_refused_and_nothing_changed(
    region: msharefs.Region, two: list[Process], range_: tuple[int, int]
) -> None:
    """The other process, which could have let go of the memory, still has it mapped."""
    before = state(region, two)
    for name, verb in REFUSED.items():
        with pytest.raises(OSError, match=rf"{two[1].actor.pid}.*let it go on") as caught:
            verb(region, *range_)
        assert caught.value.errno == errno.EBUSY, name
        assert state(region, two) == before, name
    assert holds(two[0], *range_)
    go_on(two[1].actor)
    assert holds(two[1], *range_)


def test_what_is_stopped_has_only_a_part_of_it(region: msharefs.Region, two: list[Process]) -> None:
    """Of an object, which it has not touched, the other does not let go for nothing either."""
    fd = os.memfd_create("object")
    os.truncate(fd, SOME)
    region.map(SIZE, SOME, mmap.PROT_READ | mmap.PROT_WRITE, FILE, fd)
    os.close(fd)
    assert two[0].actor.call("fill", two[0].base + SIZE, SOME, 7, 0) == []
    stop(two[1].actor)
    before = state(region, two)
    with pytest.raises(OSError, match="let it go on") as caught:
        region.advise(0, SIZE + SOME, verbs.MADV_DONTNEED)
    assert caught.value.errno == errno.EBUSY
    assert state(region, two) == before
    go_on(two[1].actor)
    region.advise(0, SIZE + SOME, verbs.MADV_DONTNEED)
    assert entries(region) == 0
    assert all(holds(process, at, SOME) for process in two for at in (0, SIZE))


def test_in_force(region: msharefs.Region, two: list[Process], range_: tuple[int, int]) -> None:
    at, _ = range_
    for name, (verb, flags) in KEPT.items():
        verb(region, *range_)
        [vma] = (vma for vma in region.maps() if vma["start"] == at)
        assert sorted(vma["flags"]) == sorted(flags), name
    assert holds(two[0], *range_)
    go_on(two[1].actor)
    assert holds(two[1], *range_)


def test_what_is_taken_from_the_stopped(
    region: msharefs.Region, two: list[Process], range_: tuple[int, int]
) -> None:
    """The contents; of anonymous memory the right to write, and the mapping, too."""
    at, size = range_
    other = two[1]
    if at == 0:
        region.protect(at, size, READ)
        go_on(other.actor)
        assert other.actor.call("store", other.base + at, 1) == accerr(other.base + at)
        region.protect(at, size, mmap.PROT_READ | mmap.PROT_WRITE)
        stop(other.actor)
    region.advise(at, size, verbs.MADV_REMOVE)
    go_on(other.actor)
    assert other.actor.call("load", other.base + at) == [0]
    if at == 0:
        stop(other.actor)
        region.unmap(at, size)
        go_on(other.actor)
        assert other.actor.call("load", other.base + at) == maperr(other.base + at)
