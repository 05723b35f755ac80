"""Code in a region: its mappings alone say what may be executed, in every attached process."""

from __future__ import annotations

import mmap
import os
import platform
from typing import TYPE_CHECKING

import pytest

from support.actor import PAGE, READ_WRITE, accerr, maperr
from support.memory import QUANTUM, RegionMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor
    from support.memory import Memory

pytestmark = [
    pytest.mark.mount("quantum=2M"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the code is x86-64's"),
]
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC


def code(value: int) -> bytes:
    """A function that returns `value`: mov $value, %eax; ret."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


def put(memory: Memory, offset: int, value: int) -> None:
    """Stores the function into memory that can be written."""
    for at, byte in enumerate(code(value)):
        assert memory.store(offset + at, byte) == []


def test_code_in_anonymous_memory(memory: Memory) -> None:
    memory.map(0, 4 * PAGE, READ | WRITE | EXEC)
    memory.map(4 * PAGE, PAGE)
    for page in (0, 3, 4):
        put(memory, page * PAGE, 100 + page)
    assert memory.run(0) == [100]
    assert memory.run(3 * PAGE) == [103]
    assert memory.run(4 * PAGE) == accerr(memory.base + 4 * PAGE)
    assert memory.run(5 * PAGE) == maperr(memory.base + 5 * PAGE)
    # It comes and goes with the rights.
    memory.protect(0, 2 * PAGE, READ_WRITE)
    assert memory.run(0) == accerr(memory.base)
    assert memory.run(3 * PAGE) == [103]
    memory.protect(0, PAGE, READ | EXEC)
    assert memory.run(0) == [100]
    assert memory.store(0) == accerr(memory.base)
    assert memory.run(0) == [100]
    memory.map(0, PAGE)
    put(memory, 0, 7)
    assert memory.run(0) == accerr(memory.base)
    memory.unmap(3 * PAGE)
    assert memory.run(3 * PAGE) == maperr(memory.base + 3 * PAGE)
    memory.map(3 * PAGE, PAGE)
    put(memory, 3 * PAGE, 7)
    assert memory.run(3 * PAGE) == accerr(memory.base + 3 * PAGE)


def test_code_in_a_file(memory: Memory, file: int) -> None:
    os.ftruncate(file, 40 * PAGE)
    for page in range(40):
        os.pwrite(file, code(page), page * PAGE)
    memory.map_file(0, 40 * PAGE, file, 0, READ | EXEC)
    memory.map_file(QUANTUM, 40 * PAGE, file, 0, READ)
    assert memory.run(0) == [0]  # fetched before anything was read
    assert memory.run(30 * PAGE) == [30]
    assert memory.load(31 * PAGE) == [0xB8]
    assert memory.store(30 * PAGE) == accerr(memory.base + 30 * PAGE)
    assert memory.run(QUANTUM) == accerr(memory.base + QUANTUM)
    assert memory.load(QUANTUM) == [0xB8]
    assert memory.run(QUANTUM) == accerr(memory.base + QUANTUM)
    memory.protect(0, 20 * PAGE, READ)
    assert memory.run(0) == accerr(memory.base)
    assert memory.run(30 * PAGE) == [30]
    memory.protect(QUANTUM, 20 * PAGE, READ | EXEC)
    assert memory.run(QUANTUM + 5 * PAGE) == [5]


def test_children_execute_too(memory: Memory, file: int) -> None:
    os.ftruncate(file, PAGE)
    os.pwrite(file, code(8), 0)
    memory.map(0, 2 * PAGE, READ | WRITE | EXEC)
    memory.map_file(2 * PAGE, PAGE, file, 0, READ | EXEC)
    put(memory, 0, 9)
    child = memory.actor.fork(memory.base + PAGE)
    assert child.finish() == [0]
    assert child.call("call", memory.base) == [9]
    assert child.call("call", memory.base + 2 * PAGE) == [8]
    assert memory.run(0) == [9]


def test_whoever_is_attached_already(
    actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region]
) -> None:
    """And processes that come later; those that touched nothing, and those that only read."""
    region = make_region()
    early = RegionMemory(actors(), region)
    reader = actors()
    base = reader.attach(reader.give(region.fd), prot=READ)
    none = actors()
    bare = none.attach(none.give(region.fd), prot=0)
    region.map(0, PAGE, READ | WRITE | EXEC)
    put(early, 0, 55)
    late = RegionMemory(actors(), region)
    for run in (
        lambda: early.run(0),
        lambda: late.run(0),
        lambda: reader.call("call", base),
        lambda: none.call("call", bare),
    ):
        assert run() == [55]
    assert reader.call("store", base, 1) == accerr(base)
    region.protect(0, PAGE, READ)
    for actor, at in (
        (early.actor, early.base), (late.actor, late.base), (reader, base), (none, bare)
    ):  # fmt: skip
        assert actor.call("call", at) == accerr(at)
