"""Files in a region behave as in any mapping: each test holds for mmap(2) first."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support import cc, namespace, proc
from support.actor import MAP_FIXED, PAGE, READ_WRITE, SOURCES, Board, accerr, adrerr, maperr
from support.memory import RegionMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import msharefs

    from support.actor import Actor
    from support.memory import Memory

pytestmark = pytest.mark.mount("quantum=2M")
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
MCL_FUTURE = 2  # mlockall(2)


def grow(fd: int, pages: int) -> None:
    """Page n of the file begins with byte n + 1."""
    os.ftruncate(fd, pages * PAGE)
    for page in range(pages):
        os.pwrite(fd, bytes([page + 1]), page * PAGE)


def test_it_is_one_memory_with_read_and_write(memory: Memory, file: int) -> None:
    grow(file, 40)
    memory.map_file(5 * PAGE, 40 * PAGE, file)
    assert [memory.load((5 + page) * PAGE) for page in range(40)] == [[at + 1] for at in range(40)]
    assert memory.store(9 * PAGE + 8, 77) == []
    assert os.pread(file, 1, 4 * PAGE + 8) == bytes([77])
    os.pwrite(file, bytes([99]), 30 * PAGE + 1)
    assert memory.load(35 * PAGE + 1) == [99]
    # System calls into memory that nobody has touched yet.
    grow(file, 60)
    memory.map_file(2 << 20, 60 * PAGE, file)
    assert memory.read((2 << 20) + 50 * PAGE, 2 * PAGE) == 2 * PAGE
    assert os.pread(file, 2 * PAGE, 50 * PAGE) == b"\x5a" * 2 * PAGE
    assert memory.write((2 << 20) + 20 * PAGE, PAGE) == [PAGE, 21]


def test_another_offset_of_the_file(memory: Memory, file: int) -> None:
    grow(file, 40)
    memory.map_file(33 * PAGE, 4 * PAGE, file, 30 * PAGE)
    assert [memory.load((33 + page) * PAGE) for page in range(4)] == [[31], [32], [33], [34]]
    for outside in (32 * PAGE, 37 * PAGE):
        assert memory.load(outside) == maperr(memory.base + outside)


def test_past_the_end_of_the_file(memory: Memory, file: int) -> None:
    grow(file, 3)
    memory.map_file(0, 20 * PAGE, file)
    for offset in (3 * PAGE + 7, 15 * PAGE, 19 * PAGE):
        assert memory.load(offset) == adrerr(memory.base + offset)
        assert memory.store(offset) == adrerr(memory.base + offset)
    assert memory.load(2 * PAGE) == [3]
    grow(file, 6)
    assert memory.load(5 * PAGE) == [6]
    assert memory.load(6 * PAGE) == adrerr(memory.base + 6 * PAGE)
    os.ftruncate(file, PAGE)
    assert memory.load(PAGE) == adrerr(memory.base + PAGE)
    assert memory.load(0) == [1]


def test_a_full_file_system(memory: Memory, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path) as path:
        fd = os.open(path / "object", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(fd, 32 * PAGE)
            memory.map_file(0, 32 * PAGE, fd)
            outcomes = [memory.store(page * PAGE) for page in range(32)]
            there = outcomes.count([])
            assert 0 < there <= 8
            assert outcomes[there:] == [
                adrerr(memory.base + page * PAGE) for page in range(there, 32)
            ]
        finally:
            memory.unmap(0, 32 * PAGE)
            os.close(fd)


@contextlib.contextmanager
def small_tmpfs(path: Path) -> Iterator[Path]:
    """A tmpfs of eight pages."""
    namespace.tmpfs(path, f"size={8 * PAGE}")
    try:
        yield path
    finally:
        namespace.detach(path)


def test_rights(memory: Memory, file: int) -> None:
    grow(file, 64)
    for number, prot in enumerate((READ, WRITE, 0, READ | WRITE)):
        memory.map_file(16 * number * PAGE, 16 * PAGE, file, 0, prot)
    for number, (load, store) in enumerate(((1, 0), (1, 1), (0, 0), (1, 1))):
        for page in (3, 9):  # also when the block is mapped by then
            at = (16 * number + page) * PAGE
            assert memory.load(at) == ([page + 1] if load else accerr(memory.base + at))
            assert memory.store(at + 1) == ([] if store else accerr(memory.base + at + 1))
            assert memory.load(at) == ([page + 1] if load else accerr(memory.base + at))
            assert memory.store(at + 1) == ([] if store else accerr(memory.base + at + 1))


def test_other_rights(memory: Memory, file: int) -> None:
    grow(file, 64)
    memory.map_file(0, 64 * PAGE, file)
    for page in (0, 20, 40):
        memory.store(page * PAGE, 200)
    memory.protect(16 * PAGE, 16 * PAGE, READ)
    for page in (20, 21, 31):
        assert memory.store(page * PAGE) == accerr(memory.base + page * PAGE)
    assert memory.load(20 * PAGE) == [200]
    assert memory.store(15 * PAGE) == memory.store(32 * PAGE) == []
    memory.protect(16 * PAGE, 16 * PAGE, 0)
    assert memory.load(20 * PAGE) == accerr(memory.base + 20 * PAGE)
    memory.protect(0, 64 * PAGE, READ | WRITE)
    assert memory.load(20 * PAGE) == [200]
    assert memory.store(20 * PAGE, 201) == []
    assert os.pread(file, 1, 20 * PAGE) == bytes([201])


def test_several_files_with_holes(memory: Memory, tmp_path: Path) -> None:
    files = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in range(100)]
    try:
        for number, fd in enumerate(files):
            os.truncate(fd, 2 * PAGE)
            os.pwrite(fd, bytes([number]), PAGE)
            memory.map_file(4 * number * PAGE, 2 * PAGE, fd, 0, READ if number % 2 else READ_WRITE)
            memory.map((4 * number + 3) * PAGE, PAGE)
        # More objects than a process keeps descriptors for, twice.
        for _ in range(2):
            for number in range(100):
                at = 4 * number * PAGE
                assert memory.load(at + PAGE) == [number]
                refused = accerr(memory.base + at) if number % 2 else []
                assert memory.store(at) == refused
                assert memory.load(at + 2 * PAGE) == maperr(memory.base + at + 2 * PAGE)
                assert memory.load(at + 3 * PAGE) == [0]
    finally:
        for fd in files:
            os.close(fd)


def test_one_in_the_place_of_another(memory: Memory, file: int) -> None:
    grow(file, 8)
    memory.map_file(0, 8 * PAGE, file)
    assert memory.store(2 * PAGE, 200) == []
    memory.map(PAGE, 4 * PAGE)
    assert [memory.load(page * PAGE) for page in range(8)] == [
        [1], [0], [0], [0], [0], [6], [7], [8]
    ]  # fmt: skip
    memory.store(2 * PAGE, 5)
    memory.map_file(2 * PAGE, PAGE, file, 2 * PAGE)
    assert memory.load(2 * PAGE) == [200]
    assert memory.load(3 * PAGE) == [0]
    memory.map(2 * PAGE, PAGE)
    assert memory.load(2 * PAGE) == [0]
    assert os.pread(file, 1, 2 * PAGE) == bytes([200])


def test_a_part_is_unmapped(memory: Memory, file: int) -> None:
    grow(file, 40)
    memory.map_file(0, 40 * PAGE, file)
    for page in range(40):
        memory.store(page * PAGE, 100 + page)
    memory.unmap(5 * PAGE, 3 * PAGE)
    for page in range(5, 8):
        assert memory.load(page * PAGE) == maperr(memory.base + page * PAGE)
    assert memory.load(4 * PAGE) == [104]
    assert memory.load(8 * PAGE) == [108]
    assert os.pread(file, 1, 6 * PAGE) == bytes([106])


def test_a_forked_child_has_it(memory: Memory, file: int) -> None:
    grow(file, 40)
    memory.map_file(0, 40 * PAGE, file)
    memory.store(0, 50)
    child = memory.actor.fork(memory.base)
    assert child.finish() == [50]
    assert child.call("store", memory.base + 1, 51) == []
    assert memory.load(1) == [51]
    assert child.call("store", memory.base + 30 * PAGE, 52) == []
    assert os.pread(file, 1, 30 * PAGE) == bytes([52])
    assert memory.load(30 * PAGE) == [52]
    if isinstance(memory, RegionMemory):  # a plain mapping is each process's own
        memory.unmap(30 * PAGE)
        for actor in (child, memory.actor):
            at = memory.base + 30 * PAGE
            assert actor.call("load", at) == maperr(at)


def change_rights(memory: Memory, times: int) -> tuple[int, int, int]:
    """Takes and gives the right to write to 16 pages while two threads store: see Board.seen."""
    with Board() as board:
        board.phase(Board.THERE)
        memory.actor.call("echo", memory.actor.give(board.fd), 0, memory.base, 2)
        for _ in range(times):
            board.wait(0, 0, 20)
            board.phase(Board.CHANGING)
            memory.protect(0, 16 * PAGE, READ)
            board.phase(Board.GONE)
            board.wait(0, 1, 20)
            board.phase(Board.CHANGING)
            memory.protect(0, 16 * PAGE, READ_WRITE)
            board.phase(Board.THERE)
        board.wait(0, 0, 20)
        board.phase(Board.STOP)
        memory.actor.call("join")
        return board.seen(0)


def test_no_store_is_lost_while_rights_change(memory: Memory, file: int) -> None:
    """Threads that store and load all the time see their own values or a signal, nothing else."""
    os.ftruncate(file, 16 * PAGE)
    memory.map_file(0, 16 * PAGE, file)
    stored, refused, wrong = change_rights(memory, times=10)
    assert stored >= 200
    assert refused >= 200
    assert wrong == 0
    counted = sum(int.from_bytes(os.pread(file, 8, page * PAGE), "little") for page in range(2))
    assert counted == stored


def test_unmap_and_create_while_all_hammer(memory: Memory, file: int) -> None:
    """After UNMAP no store goes through, and every one is refused with SEGV_MAPERR."""
    os.ftruncate(file, 16 * PAGE)
    memory.map_file(0, 16 * PAGE, file)
    with Board() as board:
        board.phase(Board.THERE)
        memory.actor.call("hammer", memory.actor.give(board.fd), 0, memory.base, 16, 2)
        for _ in range(10):
            board.wait(0, 0, 20)
            board.phase(Board.CHANGING)
            memory.unmap(0, 16 * PAGE)
            board.phase(Board.GONE)
            board.wait(0, 1, 20)
            board.phase(Board.CHANGING)
            memory.map_file(0, 16 * PAGE, file)
            board.phase(Board.THERE)
        for _ in range(5):  # in one step
            board.wait(0, 0, 20)
            memory.map_file(0, 16 * PAGE, file)
        board.phase(Board.STOP)
        memory.actor.call("join")
        assert board.seen(0)[2] == 0


def test_anonymous_memory_where_a_file_was(memory: Memory, file: int) -> None:
    """It is watched as before: rights are taken from running threads."""
    os.ftruncate(file, 16 * PAGE)
    memory.map_file(0, 16 * PAGE, file)
    assert memory.store(0, 3) == []
    memory.map(0, 16 * PAGE)
    assert change_rights(memory, times=5)[2] == 0
    memory.unmap(3 * PAGE)
    assert memory.load(3 * PAGE) == maperr(memory.base + 3 * PAGE)
    assert os.pread(file, 1, 0) == b"\x03"


def test_all_memory_is_locked(memory: Memory, file: int) -> None:
    """After mlockall(2) a new mapping is filled at once."""
    grow(file, 64)
    memory.actor.call("mlockall", MCL_FUTURE)
    memory.map_file(0, 64 * PAGE, file)
    for page in (0, 17, 40, 63):
        assert memory.load(page * PAGE) == [page + 1]
    memory.unmap(17 * PAGE)
    assert memory.load(17 * PAGE) == maperr(memory.base + 17 * PAGE)
    assert memory.store(18 * PAGE, 200) == []
    assert os.pread(file, 1, 18 * PAGE) == bytes([200])


def test_children_of_a_process_whose_threads_fault(memory: Memory, file: int) -> None:
    os.ftruncate(file, 256 * PAGE)
    memory.map_file(0, 256 * PAGE, file)
    with Board() as board:
        board.phase(Board.THERE)
        where = memory.actor.give(board.fd)
        memory.actor.call("flood", where, 0, memory.base, 256, PAGE, 2, 1)
        for number in range(12):
            os.pwrite(file, bytes([number]), 255 * PAGE + 100)
            child = memory.actor.fork(memory.base + 255 * PAGE + 100)
            assert child.finish() == [number]
            assert child.call("store", memory.base + 254 * PAGE + 99, number) == []
            assert os.pread(file, 1, 254 * PAGE + 99) == bytes([number])
            child.end()
        board.wait(0, 0, 100)
        board.phase(Board.STOP)
        memory.actor.call("join")


def test_a_large_file_does_not_split_the_window_endlessly(
    actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region]
) -> None:
    size = 64 << 30
    memory = RegionMemory(actors(), make_region(size))
    fd = os.memfd_create("large", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        memory.map_file(0, size, fd)
        step = size // 128
        for at in range(0, size, step):
            os.pwrite(fd, b"\x07", at)
            assert memory.load(at) == [7]
        mapped = [each for each in proc.maps(memory.actor.pid) if "large" in each.path]
        assert 1 <= len(mapped) <= 4096
    finally:
        os.close(fd)


@pytest.mark.usefixtures("by_thread")
def test_stores_that_are_refused_while_their_block_is_mapped(
    make_region: Callable[..., msharefs.Region], tmp_path: Path
) -> None:
    """A guard page on a block of the file must not give it the rights of the window."""
    program = cc.build(SOURCES / "refused.c", tmp_path / "refused", str(SOURCES / "trap.c"))
    size = 64 << 20
    region = make_region(size)
    fd = os.memfd_create("read-only", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    region.map(0, size, READ, mmap.MAP_SHARED | MAP_FIXED, fd)
    region.map(0, 64 << 10, READ_WRITE, mmap.MAP_SHARED | MAP_FIXED, fd)
    os.close(fd)
    subprocess.run([program, region.path], check=True, timeout=60)


def test_an_object_that_is_unmapped_is_held_by_nobody(
    actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region]
) -> None:
    """Its memory would not come back: not to a file system, and not to the pool of huge pages."""
    region = make_region()
    memory = RegionMemory(actors(), region)
    child = memory.actor.fork()
    assert child.finish() == []
    fd = os.memfd_create("short-lived", os.MFD_CLOEXEC)
    os.ftruncate(fd, 40 * PAGE)
    memory.map_file(0, 40 * PAGE, fd)
    os.close(fd)
    assert memory.load(0) == [0]
    assert child.call("store", memory.base, 1) == []
    assert all(held(actor.pid, "short-lived") for actor in (memory.actor, child))
    memory.unmap(0, 40 * PAGE)
    assert not any(held(actor.pid, "short-lived") for actor in (memory.actor, child))


def held(pid: int, name: str) -> list[str]:
    """Descriptors and mappings that a process has of a memfd."""
    paths = [*proc.open_files(pid), *(each.path for each in proc.maps(pid))]
    return [path for path in paths if name in path]


def test_all_see_an_unmap(
    actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region], file: int
) -> None:
    grow(file, 40)
    region = make_region()
    crowd = [RegionMemory(actors(), region) for _ in range(3)]
    crowd[0].map_file(0, 40 * PAGE, file)
    for memory in crowd:
        assert memory.load(20 * PAGE) == [21]
    crowd[1].unmap(20 * PAGE)
    for memory in crowd:
        assert memory.load(20 * PAGE) == maperr(memory.base + 20 * PAGE)
        assert memory.load(21 * PAGE) == [22]
