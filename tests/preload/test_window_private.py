"""Ordinary calls on a window that are the process's own (-o window=private).

Where the same call means the same, Linux is asked first: two processes with a mapping of a memfd.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.lab import report, sampling
from msharefs.launch import running

from .conftest import (
    ANONYMOUS,
    DONTUNMAP,
    EXEC,
    FIXED,
    MAYMOVE,
    MREMAP_FIXED,
    NOREPLACE,
    PAGE,
    PLACE,
    PRIVATE,
    QUANTUM,
    READ,
    READ_WRITE,
    SHARED,
    File,
    clients,
)
from support.audit import assert_whole
from support.rawmm import SLOT_UNSHARED, RawMM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "window=private")

SIZE = 4 * QUANTUM
MAPPED = 2 * QUANTUM
"""The first half; the rest is a hole."""
SYS_MBIND, SYS_MSEAL = 237, 462
OWN = PRIVATE | ANONYMOUS | FIXED
MAPERR, ACCERR = "SIGSEGV MAPERR", "SIGSEGV ACCERR"


class Pair:
    """Memory that two processes share, at PLACE; the first of them changes its own."""

    def __init__(self, agent: Agent, path: str = "") -> None:
        self.agent, self.path = agent, path
        assert agent.store(PLACE, 42) == "ok"
        self.other = agent.fork()

    def say(self, function: str, offset: int, *arguments: int) -> str:
        """A call of the first process on an address: the errno, or "0"."""
        return self.agent.result(function, PLACE + offset, *arguments)[1]

    def seen(self, offset: int = 0) -> tuple[str, str]:
        """A byte as both see it."""
        return self.agent.load(PLACE + offset), self.other.load(PLACE + offset)

    def stored(self, offset: int, byte: int = 7) -> tuple[str, str]:
        """What a store by each of them gives."""
        return self.agent.store(PLACE + offset, byte), self.other.store(PLACE + offset, byte)

    def tables(self) -> list[int]:
        """The unshared tables of both, as `msharefs clients` has them."""
        with msharefs.open(self.path) as region:
            of = {one["pid"]: one["unshared_tables"] for one in region.clients()}
        return [of[process.pid] or 0 for process in (self.agent, self.other)]

    def maps(self) -> list[tuple[int, int, str]]:
        """The VMAs of the region: start, end, permissions."""
        with msharefs.open(self.path) as region:
            return [(vma["start"], vma["end"], vma["prot"]) for vma in region.describe("maps")]


@pytest.fixture(params=["linux", "region"])
def pair(request: pytest.FixtureRequest, shared_mount: Mount) -> Pair:
    """What must behave alike."""
    del shared_mount  # of all tests: it is there before one begins
    if request.param == "region":
        both: Pair = request.getfixturevalue("window")
        return both
    agent: Agent = request.getfixturevalue("plain")
    fd = agent.call("memfd_create", "m", 0)
    assert agent.call("ftruncate", fd, SIZE) == 0
    assert agent.call("mmap", PLACE, MAPPED, READ_WRITE, SHARED | FIXED, fd, 0) == PLACE
    return Pair(agent)


@pytest.fixture
def window(make_region: Callable[..., File]) -> Pair:
    """Two processes with a region."""
    region = make_region(SIZE, mapped=False)
    region.map(0, MAPPED)
    region.attach(address=PLACE)
    return Pair(region.agent, region.path)


class TestRights:
    def test_taken_from_the_caller_alone(self, pair: Pair) -> None:
        assert pair.say("mprotect", PAGE, 2 * PAGE, READ) == "0"
        assert pair.stored(PAGE) == (ACCERR, "ok")
        assert pair.seen(PAGE) == ("7", "7")
        assert pair.stored(0) == pair.stored(3 * PAGE) == ("ok", "ok")
        assert pair.say("mprotect", PAGE, PAGE, 0) == "0"
        assert pair.seen(PAGE) == (ACCERR, "7")
        assert pair.say("mprotect", 0, MAPPED, READ_WRITE) == "0"
        assert pair.stored(PAGE, 8) == pair.stored(2 * PAGE) == ("ok", "ok")

    def test_given_to_the_caller_alone(self, pair: Pair) -> None:
        """Others have what the mapping has, here after a change by all of them."""
        for process in (pair.agent, pair.other) if not pair.path else ():
            assert process.say("mprotect", PLACE, QUANTUM, READ) == "0"
        if pair.path:
            with msharefs.open(pair.path, os.O_RDWR) as region:
                region.protect(0, QUANTUM, READ)
        assert pair.stored(0) == pair.stored(PAGE) == (ACCERR, ACCERR)
        assert pair.say("mprotect", 0, PAGE, READ_WRITE) == "0"
        assert pair.stored(0) == ("ok", ACCERR)
        assert pair.stored(PAGE) == (ACCERR, ACCERR)
        assert pair.seen(0) == ("7", "7")
        assert pair.say("mprotect", 0, 4 * PAGE, READ_WRITE) == "0"
        assert pair.stored(3 * PAGE) == ("ok", ACCERR)  # a page that nobody has touched
        assert pair.seen(3 * PAGE) == ("7", "7")
        assert pair.say("mprotect", 0, 4 * PAGE, READ) == "0"
        assert pair.stored(3 * PAGE) == (ACCERR, ACCERR)

    def test_a_system_call_has_them_too(self, pair: Pair) -> None:
        assert pair.say("mprotect", PAGE, PAGE, READ) == "0"
        pipe = pair.agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        assert pair.agent.call("pipe", pipe) == 0
        ends = struct.unpack("ii", pair.agent.get(pipe, 8))
        assert pair.agent.result("write", ends[1], PLACE + PAGE - 4, 8) == (8, "0")
        assert pair.agent.result("read", ends[0], PLACE + PAGE - 4, 8)[1] == "EFAULT"
        assert pair.agent.result("read", ends[0], PLACE + 2 * PAGE, 4) == (4, "0")

    def test_without_a_key(self, pair: Pair) -> None:
        assert pair.say("pkey_mprotect", 0, PAGE, READ, -1) == "0"
        assert pair.stored(0) == (ACCERR, "ok")
        if pair.path:  # the key that all memory has; Linux knows keys only where the processor does
            assert pair.say("pkey_mprotect", 0, PAGE, READ_WRITE, 0) == "0"
            assert pair.stored(0) == ("ok", "ok")

    def test_nonsense(self, pair: Pair) -> None:
        assert pair.say("mprotect", 0, PAGE, 0x10) == "EINVAL"
        assert pair.say("mprotect", 1, PAGE, READ) == "EINVAL"
        assert pair.say("mprotect", MAPPED, PAGE, READ) == "ENOMEM"
        assert pair.say("mprotect", MAPPED, PAGE, 0x10) == "EINVAL"
        assert pair.stored(0) == ("ok", "ok")

    def test_code(self, pair: Pair) -> None:
        """A function that returns, in a page that only one may execute."""
        pair.agent.put(PLACE, b"\xc3")
        assert pair.agent.run(PLACE) == ACCERR
        assert pair.say("mprotect", 0, PAGE, READ | EXEC) in ("0", "EACCES")  # noexec
        if pair.agent.load(PLACE) == "195" and pair.agent.run(PLACE) == "ok":
            assert pair.other.run(PLACE) == ACCERR


class TestUnmap:
    def test_a_part(self, pair: Pair) -> None:
        assert pair.say("munmap", PAGE, 2 * PAGE) == "0"
        assert pair.seen(PAGE) == (MAPERR, "0")
        assert pair.seen() == ("42", "42")
        assert pair.seen(3 * PAGE) == ("0", "0")
        assert pair.say("munmap", PAGE, PAGE) == "0"  # a hole
        assert pair.say("mprotect", 0, 2 * PAGE, READ) == "ENOMEM"
        assert pair.say("madvise", PAGE, PAGE, verbs.MADV_DONTNEED) == "ENOMEM"
        assert pair.stored(PAGE) == (MAPERR, "ok")

    def test_the_place_is_the_programs(self, pair: Pair) -> None:
        assert pair.say("munmap", PAGE, 2 * PAGE) == "0"
        flags = PRIVATE | ANONYMOUS | NOREPLACE
        assert pair.agent.result(
            "mmap", PLACE + PAGE, PAGE, READ_WRITE, flags, -1, 0
        ) == (PLACE + PAGE, "0")  # fmt: skip
        assert pair.stored(PAGE, 9) == ("ok", "ok")
        assert pair.other.store(PLACE + PAGE, 5) == "ok"
        assert pair.seen(PAGE) == ("9", "5")
        assert pair.say("mprotect", PAGE, PAGE, READ) == "0"
        assert pair.stored(PAGE) == (ACCERR, "ok")
        assert pair.say("madvise", PAGE, PAGE, verbs.MADV_DONTNEED) == "0"
        assert pair.agent.load(PLACE + PAGE) == "0"
        assert pair.say("munmap", PAGE, PAGE) == "0"
        assert pair.agent.load(PLACE + PAGE) == MAPERR

    def test_both_ends_of_it(self, pair: Pair) -> None:
        """The rest, and what is next to it."""
        flags = PRIVATE | ANONYMOUS | FIXED
        below = PLACE - PAGE
        assert pair.agent.call("mmap", below, PAGE, READ_WRITE, flags, -1, 0) == below
        assert pair.say("munmap", -PAGE, 2 * PAGE) == "0"
        assert pair.agent.load(below) == pair.agent.load(PLACE) == MAPERR
        assert pair.seen(PAGE) == ("0", "0")
        assert pair.say("munmap", MAPPED - PAGE, SIZE) == "0"
        assert pair.seen(MAPPED - PAGE) == (MAPERR, "0")
        assert pair.seen(PAGE) == ("0", "0")

    def test_all_of_it_in_two_parts(self, window: Pair) -> None:
        assert window.say("munmap", 0, QUANTUM) == "0"
        assert len(clients(window.path)) == 2
        assert window.say("munmap", QUANTUM, SIZE - QUANTUM) == "0"
        assert [one["pid"] for one in clients(window.path)] == [window.other.pid]
        assert window.other.load(PLACE) == "42"

    def test_the_whole(self, window: Pair) -> None:
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        assert window.say("munmap", 0, SIZE) == "0"
        assert window.seen() == (MAPERR, "42")
        assert len(clients(window.path)) == 1


class TestMapOver:
    @pytest.mark.parametrize("kind", [PRIVATE, SHARED])
    def test_memory_of_its_own(self, pair: Pair, kind: int) -> None:
        flags = kind | ANONYMOUS | FIXED
        assert pair.agent.call("mmap", PLACE, PAGE, READ_WRITE, flags, -1, 0) == PLACE
        assert pair.seen() == ("0", "42")
        assert pair.agent.store(PLACE, 9) == "ok"
        assert pair.seen() == ("9", "42")
        assert pair.seen(PAGE) == ("0", "0")
        child = pair.agent.fork()
        assert child.load(PLACE) == "9"
        assert child.store(PLACE, 10) == "ok"
        assert pair.agent.load(PLACE) == ("10" if kind == SHARED else "9")

    def test_a_file(self, pair: Pair, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"x" * PAGE)
        fd = pair.agent.call("open", str(file), os.O_RDWR)
        got = pair.agent.call("mmap", PLACE + PAGE, PAGE, READ_WRITE, SHARED | FIXED, fd, 0)
        assert got == PLACE + PAGE
        assert pair.seen(PAGE) == ("120", "0")
        child = pair.agent.fork()
        assert child.store(PLACE + PAGE, 1) == "ok"
        assert file.read_bytes()[0] == 1
        assert pair.stored(0, 3) == ("ok", "ok")

    def test_the_whole(self, window: Pair) -> None:
        assert window.agent.call("mmap", PLACE, SIZE, READ_WRITE, OWN, -1, 0) == PLACE
        assert window.seen() == ("0", "42")
        assert len(clients(window.path)) == 1

    def test_another_region(self, window: Pair) -> None:
        """A page is in one window: there is no place for one in another."""
        fd = window.agent.call("open", window.path, os.O_RDWR)
        over = window.agent.result("mmap", PLACE, QUANTUM, READ_WRITE, SHARED | FIXED, fd, 0)
        assert over == (-1, "EINVAL")
        assert window.say("munmap", 0, MAPPED) == "0"
        flags = SHARED | NOREPLACE
        there = window.agent.result("mmap", PLACE, QUANTUM, READ_WRITE, flags, fd, 0)
        assert there == (-1, "EEXIST")
        hint = window.agent.call("mmap", PLACE, QUANTUM, READ_WRITE, SHARED, fd, 0)
        assert not PLACE <= hint < PLACE + SIZE
        assert window.agent.load(hint) == "42"


@pytest.mark.parametrize(
    ("offset", "old", "new", "flags", "answer"),
    [
        (0, SIZE, SIZE, 0, "0"),
        (0, SIZE, SIZE + QUANTUM, MAYMOVE, "EFAULT"),
        (0, PAGE, 2 * PAGE, 0, "EFAULT"),
        (0, SIZE, SIZE, MAYMOVE | MREMAP_FIXED, "EINVAL"),
        (0, SIZE, SIZE, MAYMOVE | DONTUNMAP, "EINVAL"),
    ],
)
def test_mremap(window: Pair, offset: int, old: int, new: int, flags: int, answer: str) -> None:
    assert window.say("mremap", offset, old, new, flags, PLACE + 8 * QUANTUM) == answer
    assert window.seen() == ("42", "42")
    assert window.tables() == [0, 0]


def test_mremap_that_shrinks(pair: Pair) -> None:
    assert pair.say("mremap", 0, MAPPED, QUANTUM, 0) == "0"
    assert pair.seen() == ("42", "42")
    assert pair.seen(QUANTUM) == (MAPERR, "0")
    assert pair.say("mremap", PAGE, 2 * PAGE, PAGE, 0) == "0"
    assert pair.seen(2 * PAGE) == (MAPERR, "0")


def test_mremap_onto_a_part(pair: Pair) -> None:
    own = pair.agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
    assert pair.agent.store(own, 5) == "ok"
    flags = MAYMOVE | MREMAP_FIXED
    assert pair.agent.call("mremap", own, PAGE, PAGE, flags, PLACE + PAGE) == PLACE + PAGE
    assert pair.seen(PAGE) == ("5", "0")
    assert pair.agent.call("mremap", PLACE + PAGE, PAGE, PAGE, flags, own) == own
    assert pair.seen(PAGE) == (MAPERR, "0")


class TestAdvice:
    def test_dontneed(self, pair: Pair) -> None:
        assert pair.say("madvise", 0, PAGE, verbs.MADV_DONTNEED) == "0"
        assert pair.seen() == ("42", "42")

    @pytest.mark.parametrize("rights", [READ, READ_WRITE])
    def test_populate(self, pair: Pair, rights: int) -> None:
        assert pair.say("mprotect", 0, QUANTUM, rights) == "0"
        writes = rights == READ_WRITE
        assert pair.say("madvise", 0, 8 * PAGE, verbs.MADV_POPULATE_READ) == "0"
        said = pair.say("madvise", 0, 8 * PAGE, verbs.MADV_POPULATE_WRITE)
        assert said == ("0" if writes else "EINVAL")
        vec = pair.agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        assert pair.say("mincore", 0, 9 * PAGE, vec) == "0"
        assert pair.agent.get(vec, 9) == bytes([1] * 8 + [0])
        assert pair.say("madvise", MAPPED - PAGE, 2 * PAGE, verbs.MADV_POPULATE_READ) == "ENOMEM"

    @pytest.mark.parametrize(
        "advice",
        [
            verbs.MADV_NORMAL, verbs.MADV_RANDOM, verbs.MADV_SEQUENTIAL, verbs.MADV_WILLNEED,
            verbs.MADV_COLD, verbs.MADV_PAGEOUT, mmap.MADV_DONTDUMP,
        ],
    )  # fmt: skip
    def test_of_a_part(self, pair: Pair, advice: int) -> None:
        assert pair.say("madvise", PAGE, PAGE, advice) == "0"
        assert pair.seen() == ("42", "42")
        assert pair.say("madvise", MAPPED - PAGE, 2 * PAGE, advice) in (
            "ENOMEM", "0" if advice == mmap.MADV_DONTDUMP and pair.path else "ENOMEM"
        )  # fmt: skip

    @pytest.mark.parametrize("advice", [verbs.MADV_FREE, verbs.MADV_WIPEONFORK, 17])
    def test_none_for_shared_memory(self, pair: Pair, advice: int) -> None:
        if advice != 17:
            assert pair.say("madvise", 0, PAGE, advice) == "EINVAL"
        assert pair.seen() == ("42", "42")

    def test_dontfork(self, pair: Pair) -> None:
        assert pair.say("madvise", 0, PAGE, mmap.MADV_DONTFORK) == "0"
        child = pair.agent.fork()
        assert child.load(PLACE) == MAPERR
        assert child.store(PLACE + PAGE, 4) == "ok"
        assert pair.seen(PAGE) == ("4", "4")
        assert pair.seen() == ("42", "42")

    def test_contents_are_everybodys(self, window: Pair) -> None:
        assert window.say("madvise", 0, PAGE, verbs.MADV_REMOVE) == "EOPNOTSUPP"
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        assert window.say("madvise", 0, PAGE, verbs.MADV_REMOVE) == "EACCES"
        assert window.say("madvise", 0, PAGE, verbs.MADV_GUARD_INSTALL) == "EINVAL"
        assert window.seen() == ("42", "42")

    def test_by_process_madvise(self, pair: Pair) -> None:
        place = pair.agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        pair.agent.put(place, PLACE.to_bytes(8, sys.byteorder) + PAGE.to_bytes(8, sys.byteorder))
        pidfd = pair.agent.call("pidfd_open", pair.agent.pid, 0)
        done = pair.agent.result("process_madvise", pidfd, place, 1, verbs.MADV_COLD, 0)
        assert done == (PAGE, "0")
        assert pair.seen() == ("42", "42")


class TestWhatStaysAsItWas:
    """Calls that do not change whose tables they are: as with window=refuse."""

    def test_locks(self, window: Pair) -> None:
        assert window.say("mlock", 0, PAGE) == "0"
        assert window.say("mlock", 0, 4 * PAGE) == "ENOMEM"
        assert window.say("munlock", 0, 4 * PAGE) == "0"
        assert window.agent.result("mlockall", 1)[1] == "0"
        assert window.agent.result("munlockall")[1] == "0"
        assert window.tables() == [0, 0]

    def test_looks(self, window: Pair) -> None:
        assert window.say("msync", 0, PAGE, 1) == "0"
        assert window.say("msync", 0, PAGE, 4) == "EINVAL"

    def test_policy(self, window: Pair) -> None:
        whole = window.agent.result("syscall", SYS_MBIND, PLACE, SIZE, 0, 0, 0, 0)
        assert whole[1] == "0"

    def test_seal(self, window: Pair) -> None:
        part = window.agent.result("syscall", SYS_MSEAL, PLACE, PAGE, 0)
        assert part[1] == "EINVAL"
        whole = window.agent.result("syscall", SYS_MSEAL, PLACE, SIZE, 0)
        assert whole[1] == "0"
        assert window.say("mprotect", 0, PAGE, READ) == "EPERM"
        assert window.say("munmap", 0, PAGE) == "EPERM"
        assert window.say("munmap", 0, SIZE) == "EPERM"
        assert window.stored(0) == ("ok", "ok")

    def test_a_key_of_its_own(self, window: Pair) -> None:
        assert window.say("pkey_mprotect", 0, PAGE, READ, 1) == "EINVAL"
        assert window.stored(0) == ("ok", "ok")


class TestTheRegion:
    """What others do with it, after a change of one's own."""

    def test_it_is_not_changed(self, window: Pair) -> None:
        before = window.maps()
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        assert window.say("munmap", 2 * PAGE, PAGE) == "0"
        assert window.say("madvise", 0, 2 * PAGE, verbs.MADV_DONTNEED) == "0"
        assert window.maps() == before == [(0, MAPPED, "rw-s")]

    def test_over_a_hole_nothing_changes(self, window: Pair) -> None:
        for call in (("mprotect", READ), ("madvise", verbs.MADV_DONTNEED)):
            assert window.say(call[0], MAPPED - PAGE, 2 * PAGE, call[1]) == "ENOMEM"
            assert window.say(call[0], 0, SIZE + PAGE, call[1]) == "ENOMEM"
        assert window.stored(MAPPED - PAGE) == window.stored(0) == ("ok", "ok")
        assert window.tables() == [0, 0]
        assert window.say("munmap", MAPPED + PAGE, PAGE) == "0"

    def test_protect_holds_where_the_process_has_changed_nothing(self, window: Pair) -> None:
        assert window.say("mprotect", PAGE, PAGE, READ_WRITE) == "0"
        assert window.say("mprotect", 2 * PAGE, PAGE, READ) == "0"
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.protect(0, QUANTUM, READ)
            assert window.stored(0) == (ACCERR, ACCERR)
            assert window.stored(PAGE) == ("ok", ACCERR)
            region.protect(0, QUANTUM, 0)
            assert window.seen() == (ACCERR, ACCERR)
            assert window.seen(PAGE) == ("7", ACCERR)
            assert window.stored(3 * PAGE) == (ACCERR, ACCERR)
            region.protect(0, QUANTUM, READ_WRITE | EXEC)
        assert window.stored(0) == ("ok", "ok")
        assert window.stored(2 * PAGE) == (ACCERR, "ok")

    def test_what_is_unmapped_is_gone_for_all(self, window: Pair) -> None:
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        assert window.seen() == ("42", "42")
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.unmap(0, PAGE)
            assert window.seen() == (MAPERR, MAPERR)
            assert window.say("mprotect", 0, PAGE, READ) == "ENOMEM"
            region.map(0, PAGE)
        assert window.seen() == ("0", "0")
        assert window.stored(0) == (ACCERR, "ok")  # the rights are those of the place

    def test_a_page_that_is_written_by_one_alone(self, window: Pair) -> None:
        """Rights of its own leave no entry behind: the region's tables stay sane."""
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.protect(0, QUANTUM, 0)
            assert window.say("mprotect", 0, 2 * PAGE, READ_WRITE) == "0"
            assert window.agent.store(PLACE + PAGE, 9) == "ok"
            assert window.agent.load(PLACE) == "42"
            assert window.other.load(PLACE + PAGE) == ACCERR
            region.protect(0, QUANTUM, READ)
            assert window.other.load(PLACE + PAGE) == "9"
            assert_whole(region)

    def test_sealed(self, window: Pair) -> None:
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.seal(0, PAGE)
        for call in (("mprotect", READ), ("munmap",)):
            assert window.say(call[0], 0, 2 * PAGE, *call[1:]) == "EPERM"
        assert window.agent.result("mmap", PLACE, PAGE, READ, OWN, -1, 0) == (-1, "EPERM")
        assert window.say("mprotect", PAGE, PAGE, READ) == "0"
        assert window.stored(0) == ("ok", "ok")
        assert window.say("munmap", 0, SIZE) == "0"

    def test_a_file_in_it(self, window: Pair, tmp_path: Path) -> None:
        """More rights than the mapping has cannot be had: the descriptor is the server's."""
        file = tmp_path / "file"
        file.write_bytes(b"x" * QUANTUM)
        with (
            msharefs.open(window.path, os.O_RDWR) as region,
            file.open("r+b") as opened,
        ):
            region.map(0, QUANTUM, READ, SHARED | FIXED, opened.fileno(), 0)
            assert window.seen() == ("120", "120")
            assert window.say("mprotect", PAGE, PAGE, READ_WRITE) == "EACCES"
            assert window.say("mprotect", PAGE, PAGE, 0) == "0"
            assert window.seen(PAGE) == (ACCERR, "120")
            region.map(0, QUANTUM, READ_WRITE, SHARED | FIXED, opened.fileno(), 0)
            assert window.say("mprotect", 2 * PAGE, PAGE, READ) == "0"
            assert window.stored(0) == ("ok", "ok")
            assert window.stored(2 * PAGE) == (ACCERR, "ok")
            assert window.seen(PAGE) == (ACCERR, "120")
            region.protect(0, QUANTUM, READ)
            assert window.seen(PAGE) == (ACCERR, "120")
            assert window.stored(2 * PAGE) == (ACCERR, ACCERR)
            assert window.seen(3 * PAGE) == ("120", "120")
            child = window.agent.fork()
            assert child.load(PLACE + PAGE) == ACCERR
            assert child.load(PLACE) == "7"
        assert file.read_bytes()[2 * PAGE] == 7


class TestCounted:
    def test_tables(self, window: Pair) -> None:
        """One for each 2 MiB span in which the process has changed something, and has memory."""
        assert window.tables() == [0, 0]
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        assert window.say("mprotect", 8 * PAGE, PAGE, READ) == "0"
        assert window.tables() == [1, 0]
        assert window.say("mprotect", QUANTUM - PAGE, 2 * PAGE, 0) == "0"
        assert window.tables() == [2, 0]
        assert window.say("munmap", MAPPED, PAGE) == "0"
        assert window.tables() == [3, 0]
        assert window.say("munmap", MAPPED, QUANTUM) == "0"
        assert window.tables() == [2, 0]
        assert window.other.result("madvise", PLACE, PAGE, verbs.MADV_DONTNEED)[1] == "0"
        assert window.tables() == [2, 1]
        child = window.agent.fork()
        of_child = Pair.__new__(Pair)
        of_child.path, of_child.agent, of_child.other = window.path, child, window.other
        assert of_child.tables() == [2, 1]

    def test_in_the_report_of_a_run(self, window: Pair, shared_mount: Mount) -> None:
        """Of the tables that a process has, sharing would leave it those."""
        processes = [window.agent.pid, window.other.pid]
        for offset in (0, QUANTUM):
            assert window.stored(offset) == ("ok", "ok")
        assert window.say("mprotect", 0, PAGE, READ) == "0"
        with sampling.Sampler(lambda: processes, shared_mount.state, interval=0.01) as sampler:
            pass
        assert sampler.error is None
        found = sampler.document()
        assert (found["own_tables_bytes"], found["unshared_tables_bytes"]) == (4 * PAGE, PAGE)
        assert found["ratio"] == 4 * PAGE / (found["page_table_bytes"] + PAGE)
        told = report.document(["x"], 0, 1.0, 0, sampler)
        kept = [row for row in report.rows(told) if "unshared" in row[2]]
        assert kept == [("  and in the processes still", "4 KiB", kept[0][2])]

    def test_a_lie_is_no_more_than_the_window(self, window: Pair, shared_mount: Mount) -> None:
        """What a process says of itself is bounded, and nobody else's concern."""
        [slot] = [
            number
            for number, one in enumerate(clients(window.path))
            if one["pid"] == window.agent.pid
        ]
        number = max(int(path.stem) for path in shared_mount.state.rglob("*.mm"))
        [path] = shared_mount.state.rglob(f"{number}.mm")
        with path.open("r+b") as file, contextlib.closing(RawMM(file.fileno())) as raw:
            raw.write(raw.slot_at(slot) + SLOT_UNSHARED, (1 << 64) - 1)
        assert window.tables() == [SIZE // QUANTUM, 0]
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.protect(0, QUANTUM, READ)
            assert window.stored(0) == (ACCERR, ACCERR)
            region.unmap(0, QUANTUM)
            assert window.seen() == (MAPERR, MAPERR)
            assert_whole(region)

    def test_others_are_not_held_up(self, window: Pair) -> None:
        """Neither by rights of its own nor by a process that is stopped with them."""
        assert window.say("mprotect", 0, PAGE, READ_WRITE) == "0"
        assert window.say("munmap", PAGE, PAGE) == "0"
        os.kill(window.agent.pid, signal.SIGSTOP)
        try:
            with msharefs.open(window.path, os.O_RDWR) as region:
                region.protect(0, QUANTUM, READ)
                assert window.other.store(PLACE, 1) == ACCERR
                region.unmap(0, PAGE)
                assert window.other.load(PLACE) == MAPERR
        finally:
            os.kill(window.agent.pid, signal.SIGCONT)
        assert window.agent.load(PLACE) == MAPERR


class TestFork:
    def test_a_child_inherits(self, pair: Pair) -> None:
        assert pair.say("mprotect", 0, PAGE, READ) == "0"
        assert pair.say("munmap", PAGE, PAGE) == "0"
        child = pair.agent.fork()
        assert child.store(PLACE, 1) == ACCERR
        assert child.load(PLACE) == "42"
        assert child.load(PLACE + PAGE) == MAPERR
        assert child.say("mprotect", PLACE, PAGE, READ_WRITE) == "0"
        assert child.store(PLACE, 1) == "ok"
        assert pair.stored(0) == (ACCERR, "ok")
        grandchild = child.fork()
        assert grandchild.store(PLACE, 2) == "ok"
        assert grandchild.load(PLACE + PAGE) == MAPERR

    def test_with_a_shadow(
        self, agents: Agents, agent_program: Path, window: Pair, shared_mount: Mount
    ) -> None:
        environment = running.environment(shared_mount.path, None)
        agent = agents.start([agent_program], {**environment, "MSHAREFS_CLIENT": "shadow"})
        fd = agent.call("open", window.path, os.O_RDWR)
        assert agent.call("mmap", PLACE, SIZE, READ_WRITE, SHARED | FIXED, fd, 0) == PLACE
        assert agent.say("mprotect", PLACE, PAGE, READ) == "0"
        assert agent.say("munmap", PLACE + PAGE, PAGE) == "0"
        child = agent.fork()
        for process in (agent, child):
            assert process.store(PLACE, 1) == ACCERR
            assert process.load(PLACE) == "42"
            assert process.load(PLACE + PAGE) == MAPERR
            assert process.store(PLACE + 2 * PAGE, 1) == "ok"
        with msharefs.open(window.path, os.O_RDWR) as region:
            region.protect(0, QUANTUM, 0)
            assert agent.load(PLACE + 2 * PAGE) == child.load(PLACE + 2 * PAGE) == ACCERR
            assert agent.load(PLACE) == child.load(PLACE) == "42"
            region.protect(0, QUANTUM, READ_WRITE)
        assert agent.store(PLACE + 2 * PAGE, 1) == "ok"


def test_by_a_descriptor_for_reading(pair: Pair) -> None:
    path = pair.path
    if not path:
        memfd = pair.agent.call("memfd_create", "m", 0)
        assert pair.agent.call("ftruncate", memfd, SIZE) == 0
        path = f"/proc/self/fd/{memfd}"
    fd = pair.agent.call("open", path, os.O_RDONLY)
    base = pair.agent.call("mmap", 0, SIZE, READ, SHARED, fd, 0)
    assert pair.agent.say("mprotect", base, PAGE, READ_WRITE) == "EACCES"
    assert pair.agent.say("mprotect", base, PAGE, 0) == "0"
    assert pair.agent.load(base) == ACCERR
    assert pair.agent.say("mprotect", base, PAGE, READ) == "0"


def test_a_reader(window: Pair) -> None:
    """Whoever may only read can only take away: the server answers its faults."""
    with msharefs.open(window.path, os.O_RDWR) as region:
        region.protect(QUANTUM, PAGE, 0)
    agent = window.agent.fork()
    assert agent.call("munmap", PLACE, SIZE) == 0
    fd = agent.call("open", window.path, os.O_RDONLY)
    base = agent.call("mmap", 0, SIZE, READ, SHARED, fd, 0)
    assert agent.load(base) == "42"
    assert agent.say("mprotect", base, PAGE, READ_WRITE) == "EACCES"
    assert agent.say("mprotect", base + QUANTUM, PAGE, READ) == "EACCES"
    assert agent.say("mprotect", base, PAGE, 0) == "0"
    assert agent.load(base) == ACCERR
    assert agent.say("munmap", base + PAGE, PAGE) == "0"
    assert agent.load(base + PAGE) == MAPERR
    assert agent.load(base + 2 * PAGE) == "0"
    child = agent.fork()
    assert child.load(base) == ACCERR
    assert child.load(base + PAGE) == MAPERR
    assert child.say("mprotect", base, PAGE, READ) == "0"
    assert child.load(base) == "42"
    tables = {one["pid"]: one["unshared_tables"] for one in clients(window.path)}
    assert (tables[agent.pid], tables[child.pid]) == (1, 1)


def test_a_part_of_a_region(window: Pair) -> None:
    """Offsets are those of the region, wherever the window begins in it."""
    fd = window.agent.call("open", window.path, os.O_RDWR)
    base = window.agent.call("mmap", 0, QUANTUM, READ_WRITE, SHARED, fd, QUANTUM)
    assert window.agent.say("mprotect", base + PAGE, PAGE, READ) == "0"
    assert window.agent.store(base + PAGE, 1) == ACCERR
    assert window.stored(QUANTUM + PAGE, 5) == ("ok", "ok")
    assert window.agent.load(base + PAGE) == "5"
    assert window.agent.say("munmap", base + PAGE, PAGE) == "0"
    assert window.agent.load(base + PAGE) == MAPERR


def test_through_a_restart(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    """Nobody is asked: the change is made without a server, and the next one sees it."""
    mount = mounts("quantum=2M", "window=private")
    path = str(mount.path / "r")
    agent = agents.start([agent_program], running.environment(mount.path, None))
    fd = agent.call("open", path, os.O_RDWR | os.O_CREAT, 0o600)
    agent.call("ftruncate", fd, SIZE)
    region = File(agent, fd, SIZE, path)
    region.map(0, MAPPED)
    region.attach(address=PLACE)
    pair = Pair(agent, path)
    agent.call("close", fd)
    assert pair.say("mprotect", 0, PAGE, READ) == "0"
    mount.stop()
    assert pair.say("mprotect", QUANTUM, PAGE, READ) == "0"
    assert pair.say("munmap", PAGE, PAGE) == "0"
    assert pair.stored(0) == pair.stored(QUANTUM) == (ACCERR, "ok")
    mount.start()
    assert pair.stored(0) == (ACCERR, "ok")
    with msharefs.open(path, os.O_RDWR) as opened:
        opened.protect(0, QUANTUM, 0)
        assert pair.seen(2 * PAGE) == (ACCERR, ACCERR)
        assert pair.seen() == ("7", ACCERR)
    assert pair.tables() == [2, 0]
    for process in (pair.agent, pair.other):
        process.exit()
    os.unlink(path)
