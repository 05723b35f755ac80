"""The parts that are left of a window are changed, exactly, with one call for each."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import struct
import threading
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from msharefs.native import ffi, lib

from support import libc

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
PAGES = 256
RW = mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED = 0x10
USERFAULTFD_IOC_NEW, UFFDIO_API = 0xAA00, 0xC018AA3F
FEATURES = 1 << 5 | 1 << 10 | 1 << 12  # MISSING_SHMEM, MINOR_SHMEM, WP_HUGETLBFS_SHMEM
WRITE_PROTECTED = 1 << 57  # in an entry of /proc/PID/pagemap
MAPS, NO_MAPS = b"/proc/self/maps", b"/nonexistent"
PLENTY = 1 << 20  # calls


class Window:
    """Pages of a file under a userfaultfd, all present. What is unmapped may be Python's next."""

    # Far below where Linux looks for room: other threads map memory, too.
    _ASIDE = 0x2000_0000_0000

    def __init__(self, pages: int = PAGES) -> None:
        self.pages = pages
        with open("/dev/userfaultfd", "rb", buffering=0) as device:
            self.uffd = fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(self.uffd, UFFDIO_API, struct.pack("QQQ", 0xAA, FEATURES, 0))
        fd = os.memfd_create("window")
        os.ftruncate(fd, pages * PAGE)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self.base = libc.map_at(self._ASIDE, pages * PAGE, RW, flags, fd)
        os.close(fd)
        self.layout = ["w"] * pages
        """w: a page of the window, .: unmapped, f: another file, a: anonymous."""
        assert self.change(lib.UFFD_WATCH) == pages * PAGE

    def close(self) -> None:
        os.close(self.uffd)
        for start, end, kind in self.pieces():
            if kind != ".":
                self._unmap(start, end)

    def pieces(self) -> list[tuple[int, int, str]]:
        found = []
        for kind, group in groupby(range(self.pages), lambda page: self.layout[page]):
            numbers = list(group)
            found.append((numbers[0], numbers[-1] + 1, kind))
        return found

    def _unmap(self, start: int, end: int) -> None:
        libc.unmap_at(self.base + start * PAGE, (end - start) * PAGE)

    def tear(self, start: int, end: int, kind: str) -> None:
        """Unmaps pages, or makes other mappings there."""
        for first, last, before in self.pieces():
            low, high = max(first, start), min(last, end)
            if low >= high or before == ".":
                continue  # it may belong to another mapping by now
            if kind == ".":
                self._unmap(low, high)
            else:
                self._cover(low, high, kind)
            self.layout[low:high] = kind * (high - low)

    def _cover(self, start: int, end: int, kind: str) -> None:
        address, size = self.base + start * PAGE, (end - start) * PAGE
        if kind == "a":
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
            assert libc.map_at(address, size, RW, flags, -1) == address
            return
        fd = os.memfd_create("own")
        os.ftruncate(fd, size)
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        flags = mmap.MAP_SHARED | MAP_FIXED
        assert libc.map_at(address, size, mmap.PROT_READ, flags, reader) == address
        os.close(reader)
        os.close(fd)

    def change(self, change: int, calls: int = PLENTY, maps: bytes = MAPS) -> int:
        """One uffd_change() of it all."""
        self.left = ffi.new("unsigned *", calls)
        size = self.pages * PAGE
        return lib.uffd_change(self.uffd, maps, self.base, size, change, self.left)

    def change_in_turns(self, change: int, calls: int) -> int:
        """Repeats it until it is done; returns how often that was."""
        at = turns = 0
        while at < self.pages * PAGE:
            left = ffi.new("unsigned *", calls)
            size = self.pages * PAGE - at
            done = lib.uffd_change(self.uffd, MAPS, self.base + at, size, change, left)
            assert done > 0
            at += done
            turns += 1
        return turns

    def protected(self) -> list[str]:
        """The layout, with W for the pages that are write-protected."""
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            data = os.pread(pagemap.fileno(), self.pages * 8, self.base // PAGE * 8)
        entries = struct.unpack(f"{self.pages}Q", data)
        return [
            kind.upper() if kind != "." and entry & WRITE_PROTECTED else kind
            for kind, entry in zip(self.layout, entries, strict=True)
        ]

    def wanted(self, *, protected: bool) -> list[str]:
        return ["W" if kind == "w" and protected else kind for kind in self.layout]


@pytest.fixture
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


def check(window: Window, maps: bytes = MAPS) -> None:
    """Both ways, and watching again."""
    most = 3 * len(window.pieces()) + 3
    for change, protected in ((lib.UFFD_PROTECT, True), (lib.UFFD_ALLOW, False)):
        assert window.change(change, maps=maps) >= window.pages * PAGE
        assert window.protected() == window.wanted(protected=protected)
        if maps == MAPS:
            assert PLENTY - window.left[0] <= most
    assert window.change(lib.UFFD_WATCH, maps=maps) >= window.pages * PAGE


def test_a_whole_window(window: Window) -> None:
    check(window)
    assert PLENTY - window.left[0] == 1


@pytest.mark.parametrize("kind", [".", "a", "f"])
@pytest.mark.parametrize(
    ("start", "end"), [(0, PAGES), (0, 128), (128, PAGES), (64, 129), (1, PAGES - 1), (7, 8)]
)
@pytest.mark.parametrize("maps", [MAPS, NO_MAPS])
def test_one_tear(window: Window, kind: str, start: int, end: int, maps: bytes) -> None:
    window.tear(start, end, kind)
    check(window, maps)


@pytest.mark.parametrize("seed", range(20))
def test_many_tears(window: Window, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 30)):
        start = chance.randrange(PAGES)
        end = min(PAGES, start + chance.choice((1, 1, 2, 9, 60)))
        window.tear(start, end, chance.choice(".af"))
    check(window)
    check(window, NO_MAPS)
    for calls in (3, 5, 17):  # refused parts are asked for once more
        turns = window.change_in_turns(lib.UFFD_PROTECT, calls)
        assert window.protected() == window.wanted(protected=True)
        assert turns <= 3 * len(window.pieces())
        assert window.change(lib.UFFD_ALLOW) >= PAGES * PAGE


def test_where_the_mappings_cannot_be_seen_it_is_bounded() -> None:
    """Too much is missing: refused, instead of one call for every page."""
    window = Window(16384)
    with contextlib.closing(window):
        window.tear(1, 16383, ".")
        assert window.change(lib.UFFD_PROTECT, maps=NO_MAPS) == 16384 * PAGE, "only holes"
        assert window.change(lib.UFFD_ALLOW, maps=NO_MAPS) == 16384 * PAGE
        window.tear(0, 1, "a")
        assert window.change(lib.UFFD_PROTECT, maps=NO_MAPS) == -errno.EBUSY
        assert window.left[0] == 0, "others have a turn"
        assert window.change(lib.UFFD_PROTECT) >= 16384 * PAGE
        assert PLENTY - window.left[0] <= 8
        assert window.protected()[16383] == "W"


@pytest.mark.parametrize(
    ("base", "size"),
    [(0, PAGE), (1, PAGE), (3, 3), (lib.HOST_END, PAGE), ((1 << 64) - PAGE, 1 << 30),
     ((1 << 63) + 5, 1 << 62), (lib.HOST_END - PAGE, 1 << 40)],
)  # fmt: skip
def test_what_is_no_window(window: Window, base: int, size: int) -> None:
    """A client may write any base address."""
    calls = ffi.new("unsigned *", PLENTY)
    done = lib.uffd_change(window.uffd, MAPS, base, size, lib.UFFD_PROTECT, calls)
    assert done >= size
    assert PLENTY - calls[0] < 2000
    assert window.protected() == window.wanted(protected=False)


def test_while_another_thread_tears(window: Window) -> None:
    """Parts that stay meanwhile are changed, whatever the mappings were when we looked."""
    window.tear(20, 30, "a")
    window.tear(200, 202, "f")
    ended = threading.Event()

    def flip() -> None:
        while not ended.is_set():
            for kind in "af":
                window._cover(100, 120, kind)

    window.tear(100, 120, "a")
    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(200):
            for change, protected in ((lib.UFFD_PROTECT, True), (lib.UFFD_ALLOW, False)):
                assert window.change(change) >= PAGES * PAGE
                found, wanted = window.protected(), window.wanted(protected=protected)
                assert found[:100] + found[120:] == wanted[:100] + wanted[120:]
    finally:
        ended.set()
        thread.join()
