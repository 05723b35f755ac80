"""2 MiB pages: of hugetlbfs files, of memfds, without a file. Each test holds for mmap(2) first."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from msharefs.lab import ptmap

from support import hugepages, namespace
from support.actor import MAP_FIXED, PAGE, READ_WRITE, accerr, adrerr, maperr
from support.calls import refused
from support.memory import KernelMemory, RegionMemory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.memory import Memory

pytestmark = [pytest.mark.mount("quantum=2M"), pytest.mark.usefixtures("pool")]
MIB2 = hugepages.BYTES
ENOUGH = 8  # pages
MAP_HUGETLB, MAP_NORESERVE = 0x40000, 0x4000
MFD_HUGETLB = 4


@pytest.fixture(scope="module")
def pool() -> Iterator[None]:
    """A pool with enough huge pages."""
    with hugepages.at_least(ENOUGH):
        yield


@pytest.fixture
def huge_file() -> Iterator[int]:
    """A memfd of huge pages, two long."""
    fd = os.memfd_create("huge", os.MFD_CLOEXEC | MFD_HUGETLB)
    os.ftruncate(fd, 2 * MIB2)
    yield fd
    os.close(fd)


def map_huge(memory: Memory, offset: int, size: int) -> None:
    """Huge pages without a file."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB
    if isinstance(memory, RegionMemory):
        memory.region.map(offset, size, READ_WRITE, flags)
    else:
        memory.actor.call("plain-map", memory.base + offset, size, READ_WRITE, flags, -1, 0)


def huge_leaves(memory: Memory) -> int:
    """Leaf entries of 2 MiB in the region's tables; -1: Linux's own memory."""
    if isinstance(memory, KernelMemory):
        return -1
    assert isinstance(memory, RegionMemory)
    levels = memory.region.describe("pagetable")["levels"]
    return sum(table["huge"] for level in levels for table in level["tables"])


def test_a_memfd(memory: Memory, huge_file: int) -> None:
    memory.map_file(0, 2 * MIB2, huge_file)
    assert memory.store(MIB2 + 5, 9) == []
    assert os.pread(huge_file, 1, MIB2 + 5) == b"\x09"
    with mmap.mmap(huge_file, MIB2) as other:
        other[77] = 66
        assert memory.load(77) == [66]
    assert huge_leaves(memory) in (-1, 2)
    if isinstance(memory, RegionMemory):
        drawn = ptmap.look(memory.region)
        assert [part["present"] for part in drawn["ranges"]] == [[512, 512]]
        assert [drawn["groups"][who] for who in drawn["ranges"][0]["who"]] == [[0], [0]]
    memory.protect(0, MIB2, mmap.PROT_READ)
    assert memory.store(0) == accerr(memory.base)
    assert memory.load(77) == [66]
    memory.unmap(MIB2, MIB2)
    assert memory.load(MIB2 + 5) == maperr(memory.base + MIB2 + 5)
    assert huge_leaves(memory) in (-1, 1)
    memory.unmap(0, MIB2)
    assert huge_leaves(memory) in (-1, 0)
    assert os.fstat(huge_file).st_blocks * 512 == 2 * MIB2, "what is stored stays stored"


def test_without_a_file(memory: Memory) -> None:
    map_huge(memory, 0, 2 * MIB2)
    for at in (0, MIB2 - 1, MIB2, MIB2 + 12345):
        assert memory.load(at) == [0]
        assert memory.store(at, 7) == []
    child = memory.actor.fork(memory.base + MIB2)
    assert child.finish() == [7]
    child.call("store", memory.base + 5, 8)
    assert memory.load(5) == [8]
    assert huge_leaves(memory) in (-1, 2)
    memory.unmap(0, 2 * MIB2)
    assert memory.load(0) == maperr(memory.base)
    map_huge(memory, 0, MIB2)
    assert memory.load(5) == [0], "those were other pages"


@pytest.mark.parametrize(("offset", "size"), [(PAGE, MIB2 - PAGE), (0, MIB2 + PAGE)])
def test_pages_are_not_cut(memory: Memory, huge_file: int, offset: int, size: int) -> None:
    memory.map_file(0, 2 * MIB2, huge_file)
    memory.store(PAGE, 5)
    for change in (
        lambda: memory.unmap(offset, PAGE if offset else size),
        lambda: memory.protect(offset, PAGE, 0) if offset else memory.protect(0, size, 0),
        lambda: memory.map(PAGE, PAGE),
    ):
        with refused(errno.EINVAL):
            change()
    assert memory.load(PAGE) == [5]


def test_the_end_of_the_file(memory: Memory, huge_file: int) -> None:
    os.ftruncate(huge_file, MIB2)
    memory.map_file(0, 2 * MIB2, huge_file, flags=MAP_NORESERVE)
    assert os.fstat(huge_file).st_size == 2 * MIB2, "hugetlbfs does that"
    os.ftruncate(huge_file, MIB2)
    assert memory.store(MIB2 - 1) == []
    assert memory.load(MIB2) == adrerr(memory.base + MIB2)


def test_an_empty_pool(memory: Memory, tmp_path: Path) -> None:
    with huge_file_system(tmp_path, pages=1):
        fd = os.open(tmp_path / "object", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, 2 * MIB2)
            memory.map_file(0, 2 * MIB2, fd, flags=MAP_NORESERVE)
            assert memory.store(MIB2) == []
            assert memory.store(0) == adrerr(memory.base)
            assert memory.load(MIB2) == [1]
            memory.unmap(0, 2 * MIB2)
        finally:
            os.close(fd)


@contextlib.contextmanager
def huge_file_system(path: Path, pages: int) -> Iterator[None]:
    """A hugetlbfs that has so many pages."""
    namespace.hugetlbfs(path, f"size={pages * MIB2},pagesize={MIB2}")
    try:
        yield
    finally:
        namespace.detach(path)
