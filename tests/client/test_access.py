"""A program sees its memory alike on Linux's own shared memory and on a region.

Each test runs on both, the kernel first: it asserts what Linux does.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.actor import PAGE, accerr, maperr
from support.calls import refused

if TYPE_CHECKING:
    from support.memory import Memory

PIECE = 64 * PAGE
READ, NONE, WRITE = mmap.PROT_READ, 0, mmap.PROT_WRITE


def test_memory_begins_as_zero_and_keeps_what_is_stored(memory: Memory) -> None:
    memory.map(0, PIECE)
    for offset in (0, PAGE + 17, PIECE - 1):
        assert memory.load(offset) == [0]
        assert memory.store(offset, 0xA5) == []
        assert memory.load(offset) == [0xA5]
    assert memory.store(2 * PAGE, 3) == [], "a first touch may be a store"
    assert memory.load(2 * PAGE + 1) == [0]


def test_every_byte_of_many_pages(memory: Memory) -> None:
    memory.map(0, memory.size)
    assert memory.actor.call("fill", memory.base, memory.size, 7, 0) == []
    assert memory.actor.call("check", memory.base, memory.size, 7, 0) == [0]
    assert memory.actor.call("check", memory.base, memory.size, 8, 0) != [0], "the check can fail"


@pytest.mark.parametrize("offset", [0, 1, 4095, PIECE - 1])
def test_a_hole(memory: Memory, offset: int) -> None:
    memory.map(PIECE, PIECE)
    assert memory.load(offset) == maperr(memory.base + offset)
    assert memory.store(offset) == maperr(memory.base + offset)


def test_the_pages_beside_a_hole_are_there(memory: Memory) -> None:
    memory.map(0, 3 * PAGE)
    memory.unmap(PAGE)
    for offset in (0, PAGE - 1, 2 * PAGE, 3 * PAGE - 1):
        assert memory.store(offset, 9) == []
    for offset in (PAGE, 2 * PAGE - 1):
        assert memory.store(offset) == maperr(memory.base + offset)
        assert memory.load(offset) == maperr(memory.base + offset)
    assert memory.load(PAGE - 1) == [9]
    assert memory.load(2 * PAGE) == [9]


@pytest.mark.parametrize("touch", ["load", "store", "none"])
def test_after_unmap_nothing_is_there(memory: Memory, touch: str) -> None:
    memory.map(0, PIECE)
    if touch != "none":
        memory.load(0) if touch == "load" else memory.store(0)
    memory.unmap(0, PIECE)
    for offset in (0, PIECE - 1):
        assert memory.load(offset) == maperr(memory.base + offset)
        assert memory.store(offset) == maperr(memory.base + offset)


def test_what_is_mapped_again_is_zero(memory: Memory) -> None:
    memory.map(0, PIECE)
    memory.actor.call("fill", memory.base, PIECE, 1, 0)
    memory.unmap(0, PIECE)
    assert memory.load(0) == maperr(memory.base)
    memory.map(0, PIECE)
    assert [memory.load(offset) for offset in range(5, PIECE, PAGE)] == [[0]] * 64


def test_a_mapping_in_the_place_of_another_is_zero(memory: Memory) -> None:
    memory.map(0, 4 * PAGE)
    memory.actor.call("fill", memory.base, 4 * PAGE, 1, 0)
    memory.map(PAGE, 2 * PAGE)
    assert memory.actor.call("check", memory.base, PAGE, 1, 0) == [0]
    assert memory.load(PAGE) == [0]
    assert memory.load(3 * PAGE - 1) == [0]
    assert memory.actor.call("check", memory.base + 3 * PAGE, PAGE, 1, 3) == [0]


def test_read_only(memory: Memory) -> None:
    memory.map(0, PIECE, READ)
    for offset in (8, PAGE + 8):
        assert memory.load(offset) == [0]
        assert memory.store(offset) == accerr(memory.base + offset)
        assert memory.load(offset) == [0], "it may still be read"
        assert memory.store(offset) == accerr(memory.base + offset), "and still not be written"
    assert memory.store(2 * PAGE) == accerr(memory.base + 2 * PAGE), "a first touch as well"


@pytest.mark.parametrize("touched", [True, False])
def test_no_access(memory: Memory, touched: bool) -> None:
    memory.map(0, PIECE)
    if touched:
        memory.store(0)
    memory.map(0, PIECE, NONE)
    assert memory.load(1) == accerr(memory.base + 1)
    assert memory.store(2) == accerr(memory.base + 2)


def test_write_only_memory_may_be_read(memory: Memory) -> None:
    """x86 has no such pages."""
    memory.map(0, PIECE, WRITE)
    assert memory.store(0, 5) == []
    assert memory.load(0) == [5]
    assert memory.load(PAGE) == [0]


@pytest.mark.parametrize("first", [READ, NONE])
@pytest.mark.parametrize("tried", [True, False])
def test_a_writable_mapping_in_the_place_of_one_that_was_not(
    memory: Memory, first: int, tried: bool
) -> None:
    memory.map(0, PIECE, first)
    if tried:
        memory.load(0)
        assert memory.store(0) == accerr(memory.base)
    memory.map(0, PIECE)
    assert memory.store(0, 4) == []
    assert memory.load(0) == [4]


@pytest.mark.parametrize("touched", [True, False])
def test_a_read_only_mapping_in_the_place_of_a_writable_one(memory: Memory, touched: bool) -> None:
    memory.map(0, PIECE)
    if touched:
        memory.store(0, 4)
    memory.map(0, PIECE, READ)
    assert memory.store(0) == accerr(memory.base)
    assert memory.load(0) == [0]


@pytest.mark.parametrize("prot", [READ, NONE])
@pytest.mark.parametrize("touch", ["load", "store", "both", "none"])
def test_unmapped_memory_that_was_protected_is_a_hole(
    memory: Memory, prot: int, touch: str
) -> None:
    """The code changes from SEGV_ACCERR to SEGV_MAPERR, whatever happened to the page before."""
    memory.map(0, PIECE, prot)
    if touch in ("load", "both"):
        memory.load(0)
    if touch in ("store", "both"):
        assert memory.store(0) == accerr(memory.base)
    memory.unmap(0, PIECE)
    assert memory.store(0) == maperr(memory.base)
    assert memory.load(0) == maperr(memory.base)


def test_a_signal_is_taken_again_and_again(memory: Memory) -> None:
    memory.map(0, PAGE)
    for _ in range(20):
        assert memory.store(PAGE + 3) == maperr(memory.base + PAGE + 3)
        assert memory.store(0) == []


def test_many_holes(memory: Memory) -> None:
    """More than the client library remembers, and each of them twice."""
    memory.map(0, memory.size)
    holes = range(PAGE, 200 * PAGE, 2 * PAGE)
    for offset in holes:
        memory.unmap(offset)
    for _ in range(2):
        for offset in holes:
            assert memory.store(offset) == maperr(memory.base + offset)
            assert memory.store(offset + PAGE) == []
    for offset in holes:
        memory.map(offset)
    for offset in holes:
        assert memory.store(offset, 2) == []


def test_many_read_only_pages(memory: Memory) -> None:
    memory.map(0, memory.size, READ)
    for _ in range(2):
        for offset in range(0, 100 * PAGE, PAGE):
            assert memory.store(offset) == accerr(memory.base + offset)
            assert memory.load(offset) == [0]


def test_a_handler_that_maps_memory_and_returns(memory: Memory) -> None:
    """The access is made again and goes through: one signal."""
    memory.map(0, PAGE)
    for offset in (PAGE, 5 * PAGE + 100):
        address = memory.base + offset
        answer = memory.actor.call("store-with-repair", address, 77, memory.base, memory.fd)
        assert answer == [77, 1]
    assert memory.load(PAGE) == [77]
    assert memory.load(2 * PAGE) == maperr(memory.base + 2 * PAGE)


def test_without_a_handler_the_signal_kills(memory: Memory) -> None:
    child = memory.actor.fork()
    assert child.finish() == []
    with child, pytest.raises(EOFError):
        child.call("load-and-die", memory.base)
    status = memory.actor.number("wait", child.pid)
    assert os.WTERMSIG(status) == signal.SIGSEGV


@pytest.mark.parametrize("threads", [1, 8])
def test_the_thread_that_made_the_access_gets_the_signal(memory: Memory, threads: int) -> None:
    memory.map(0, PAGE)
    answer = memory.actor.call("holes", memory.base + PAGE, 40, PAGE, threads)
    assert answer == [40 * threads]


MCL_CURRENT, MCL_FUTURE = 1, 2


@pytest.mark.parametrize("what", [MCL_CURRENT, MCL_FUTURE, MCL_CURRENT | MCL_FUTURE])
def test_locked_memory(memory: Memory, what: int) -> None:
    """mlockall(2) fills the mappings, and leaves holes alone."""
    memory.map(0, 8 * PAGE)
    memory.unmap(4 * PAGE)
    memory.store(0, 3)
    assert memory.actor.call("mlockall", what) == []
    assert memory.load(0) == [3]
    for offset in (4 * PAGE, 8 * PAGE):
        assert memory.store(offset) == maperr(memory.base + offset)
    assert memory.load(5 * PAGE) == [0]
    memory.map(4 * PAGE)
    assert memory.store(4 * PAGE, 2) == []
    memory.unmap(0, 2 * PAGE)
    for offset in (0, PAGE):
        assert memory.load(offset) == maperr(memory.base + offset)


class TestSystemCalls:
    """The kernel itself accesses the memory."""

    @pytest.mark.parametrize("size", [1, PAGE, 10 * PAGE + 5])
    def test_read_into_untouched_pages(self, memory: Memory, size: int) -> None:
        memory.map(0, PIECE)
        assert memory.read(100, size) == size
        assert memory.load(99) == [0]
        assert memory.load(100) == [0x5A]
        assert memory.load(100 + size - 1) == [0x5A]
        assert memory.load(100 + size) == [0]

    def test_read_into_a_hole(self, memory: Memory) -> None:
        memory.map(PAGE)
        with refused(errno.EFAULT):
            memory.read(16, 16)
        with refused(errno.EFAULT):
            memory.read(16, 16)

    def test_read_into_read_only_memory(self, memory: Memory) -> None:
        memory.map(0, PIECE, READ)
        with refused(errno.EFAULT):
            memory.read(0, 16)
        assert memory.load(0) == [0]

    @pytest.mark.parametrize("touched", [True, False])
    def test_read_that_runs_into_a_hole_is_short(self, memory: Memory, touched: bool) -> None:
        memory.map(0, 2 * PAGE)
        if touched:
            memory.store(PAGE)
        assert memory.read(PAGE + 96, 3 * PAGE) == PAGE - 96
        assert memory.load(2 * PAGE - 1) == [0x5A]

    def test_read_of_a_hole_and_then_memory(self, memory: Memory) -> None:
        memory.map(PAGE)
        with refused(errno.EFAULT):
            memory.read(PAGE - 16, 32)

    def test_write_from_untouched_pages(self, memory: Memory) -> None:
        memory.map(0, PIECE)
        memory.store(3 * PAGE, 11)
        assert memory.write(100, 5 * PAGE) == [5 * PAGE, 11]

    def test_write_from_a_hole(self, memory: Memory) -> None:
        memory.map(0, PAGE)
        memory.store(PAGE - 1, 13)
        with refused(errno.EFAULT):
            memory.write(PAGE, 16)
        assert memory.write(PAGE - 16, 32) == [16, 13], "a short count"

    def test_write_from_read_only_memory(self, memory: Memory) -> None:
        memory.map(0, PIECE, READ)
        assert memory.write(PAGE, 2 * PAGE) == [2 * PAGE, 0]

    def test_after_unmap(self, memory: Memory) -> None:
        memory.map(0, 2 * PAGE)
        memory.store(0)
        memory.store(PAGE)
        memory.unmap(PAGE)
        with refused(errno.EFAULT):
            memory.read(PAGE, 16)
        with refused(errno.EFAULT):
            memory.write(PAGE, 16)
        assert memory.read(PAGE - 4, 16) == 4
