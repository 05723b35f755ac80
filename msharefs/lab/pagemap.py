"""The page tables of a process as /proc/PID/pagemap shows them: proc_pid_pagemap(5), PAGEMAP_SCAN.

Page numbers are virtual addresses divided by 4096. PAGEMAP_SCAN (Linux 6.7) gives runs of pages and
does not visit tables that are not there; older kernels give 8 bytes for each page of a mapping.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from msharefs import proc
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]

PAGE_SHIFT = 12
# linux/fs.h: PAGE_IS_*.
WRITTEN = 1 << 1
"""Not write-protected by a userfaultfd."""
FILE = 1 << 2
"""Not anonymous: a page of a file, or of shared memory."""
PRESENT = 1 << 3
SWAPPED = 1 << 4
HUGE = 1 << 6
"""The entry is one of a PMD table, or above."""
# linux/fs.h: struct pm_scan_arg, struct page_region.
_SCAN = struct.Struct("=12Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN.size << 16 | ord("f") << 8 | 16
_WALK_END = 4
_RUNS = 1024
_COLUMNS = 3
START, END, WHAT = range(_COLUMNS)
"""The columns of an array of runs: addresses, and what their pages are."""
# The kernel holds the mmap_lock of the process for one call: some milliseconds at most, then. What
# takes time there is pages and runs; holes take little.
_CALL_BYTES = 16 << 30
_CALL_PAGES = 1 << 18
# proc_pid_pagemap(5), one entry.
_ADDRESSES = 1 << 47  # of a process, with tables of four levels
_ENTRY_BYTES = 8
_ENTRY_FRAME = (1 << 55) - 1
_ENTRY_SOFT_DIRTY = 1 << 55
_ENTRY_ALONE = 1 << 56
_ENTRY_FILE = 1 << 61
_ENTRY_SWAPPED = 1 << 62
_ENTRY_PRESENT = 1 << 63
_ENTRIES_READ = 1 << 16


def _walkable(end: int) -> int:
    """The end of a range that is rounded to 2 MiB, as PAGEMAP_SCAN takes it.

    A stack may begin in the last 2 MiB of the addresses. Their last page is never mapped, and a
    range that has it is EFAULT.
    """
    return lib.HOST_END if end == _ADDRESSES else end


class Pagemap:
    """The page tables of one process; a context manager. OSError as from `proc.open_pagemap`."""

    def __init__(self, pid: int) -> None:
        self._file: BinaryIO = proc.open_pagemap(pid)
        self._vector = bytearray(_ENTRY_BYTES * _COLUMNS * _RUNS)
        self._where = int(ffi.cast("uintptr_t", ffi.from_buffer(self._vector)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def runs(self, start: int, end: int, *, more: int = 0) -> Iterator[Numbers]:
        """Runs of pages that have an entry in [start, end), in bytes; a line for each.

        `more`: what is to be told of them beside what always is. OSError: ENOTTY before Linux 6.7.
        """
        end = _walkable(end)
        while start < end:
            found, start = self._scan(start, min(end, start + _CALL_BYTES), _CALL_PAGES, more)
            if len(found):
                yield found

    def first(self, start: int, end: int) -> Numbers | None:
        """The first page with an entry in [start, end)."""
        found, _ = self._scan(start, _walkable(end), 1)
        return found[0] if len(found) else None

    def span(self, start: int, end: int) -> Numbers:
        """As `runs`, for so few pages that one call is enough."""
        return self._scan(start, _walkable(end), 0)[0]

    def _scan(self, start: int, end: int, most: int, more: int = 0) -> tuple[Numbers, int]:
        """Up to `most` pages (0: all), and the address where the walk ended."""
        wanted, told = PRESENT | SWAPPED, PRESENT | SWAPPED | FILE | HUGE | more
        argument = bytearray(
            _SCAN.pack(_SCAN.size, 0, start, end, 0, self._where, _RUNS, most, 0, 0, wanted, told)
        )
        count = fcntl.ioctl(self._file, _PAGEMAP_SCAN, argument)
        found = np.frombuffer(self._vector, np.uint64, count * _COLUMNS).copy()
        return found.reshape(-1, _COLUMNS), _SCAN.unpack(argument)[_WALK_END]

    def entries(self, first: int, count: int) -> Numbers:
        """The entries of `count` pages from page number `first`: fewer if the memory is gone."""
        data = os.pread(self._file.fileno(), count * _ENTRY_BYTES, first * _ENTRY_BYTES)
        return np.frombuffer(data, np.uint64)

    def runs_by_entries(self, start: int, end: int) -> Iterator[Numbers]:
        """As `runs`, on any kernel: each page is asked. Huge pages are not told from small ones."""
        page, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
        while page < last:
            entries = self.entries(page, min(_ENTRIES_READ, last - page))
            if not len(entries):
                return
            yield _runs_of(entries, page)
            page += len(entries)


def _runs_of(entries: Numbers, page: int) -> Numbers:
    what = np.zeros(len(entries), np.uint64)
    for bit, meaning in ((_ENTRY_PRESENT, PRESENT), (_ENTRY_SWAPPED, SWAPPED), (_ENTRY_FILE, FILE)):
        what[entries & np.uint64(bit) != 0] |= np.uint64(meaning)
    edges = np.flatnonzero(np.diff(what)) + 1
    starts = np.concatenate(([0], edges))
    ends = np.concatenate((edges, [len(what)]))
    found = np.empty((len(starts), _COLUMNS), np.uint64)
    found[:, START] = (starts + page) << PAGE_SHIFT
    found[:, END] = (ends + page) << PAGE_SHIFT
    found[:, WHAT] = what[starts]
    held: Numbers = found[found[:, WHAT] & np.uint64(PRESENT | SWAPPED) != 0]
    return held


def frames(entries: Numbers) -> Numbers:
    """Which page, or which place in swap, each entry leads to: 0 for all without CAP_SYS_ADMIN."""
    return entries & np.uint64(_ENTRY_FRAME | _ENTRY_SWAPPED)


def alone(entries: Numbers) -> NDArray[np.bool_]:
    """Whether an entry is the only one that leads to its page, as Linux tells anybody."""
    found: NDArray[np.bool_] = entries & np.uint64(_ENTRY_ALONE) != 0
    return found


def can_scan() -> bool:
    """Whether there is PAGEMAP_SCAN: Linux 6.7."""
    with Pagemap(os.getpid()) as pagemap:
        try:
            pagemap.span(0, 1 << PAGE_SHIFT)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            return False
    return True


def sees_frames() -> bool:
    """Whether Linux shows us page frame numbers: CAP_SYS_ADMIN in the first user namespace."""
    touched = bytearray(1)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(touched)))
    with Pagemap(os.getpid()) as pagemap:
        return bool((pagemap.entries(address >> PAGE_SHIFT, 1) & np.uint64(_ENTRY_FRAME)).any())


def has_soft_dirty() -> bool:
    """Whether this kernel has soft-dirty marks (CONFIG_MEM_SOFT_DIRTY)."""
    fresh = mmap.mmap(-1, 1 << PAGE_SHIFT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fresh[0] = 1  # new memory has the mark, whoever has cleared those of older memory
    first = int(ffi.cast("uintptr_t", ffi.from_buffer(fresh))) >> PAGE_SHIFT
    with Pagemap(os.getpid()) as pagemap:
        return bool((pagemap.entries(first, 1) & np.uint64(_ENTRY_SOFT_DIRTY)).any())
