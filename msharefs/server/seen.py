"""Files that programs map shared, adopted: who maps them, and which of their pages.

The page cache has pages of a file that nobody has mapped, and keeps them when nobody maps them any
more. So it is the page tables of the processes that say which pages a host mm would have entries
for, at the moment of a look. The file is never opened, and its file system is asked nothing: it may
be locked, leased, watched, deleted, or on a server that does not answer.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import trio

from msharefs import looking, proc, processes
from msharefs.native import check, ffi, lib

from .mappings import SEEN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .adopted import Adopted
    from .hostmm import HostMM
    from .mappings import NativeMappings

log = logging.getLogger(__name__)

_PAGE = 4096
_CELL = 2 << 20
# Looked at in one go, at most: half a MiB of bits.
_PIECE_BYTES = 16 << 30


class Part(NamedTuple):
    """A part of a file that a process has mapped; bytes."""

    pid: int
    address: int
    start: int
    """In the file, as is `end`."""
    end: int


class Seen:
    """The mappings of all files that are adopted, as they were at the last look."""

    def __init__(self, adopted: Adopted, native: NativeMappings) -> None:
        self._adopted = adopted
        self._native = native
        self._parts: dict[int, list[Part]] = {}

    async def look(self) -> None:
        """Finds who maps them. ETIMEDOUT: a process keeps its address space locked."""
        files = self._adopted.files()
        if not files:
            return
        self._parts, unseen = await self._native.look(
            partial(
                parts_of,
                {(device, inode): ident for ident, (device, inode, _) in files.items()},
                self._parts,
            )
        )
        if unseen:  # it may be the one that maps it
            log.debug("not looked at: %s", processes.listed(unseen))
            return
        for ident, (_, _, told) in files.items():
            if not self._parts.get(ident):
                self._adopted.unmapped(ident, told)

    async def show(self, ident: int, host: HostMM) -> None:
        """Gives a file's region exactly the entries of the pages that are mapped now."""
        parts = self._parts.get(ident, [])
        for start, stop, mapped in _pieces(parts, host.mapped_bytes()):
            bits = ffi.NULL, ffi.NULL
            if mapped:
                bits = await self._native.look(partial(pages_of, parts, start, stop))
            async with host.unchanged():
                # The loop goes on meanwhile; nobody else may change the tables.
                found = await trio.to_thread.run_sync(
                    partial(lib.seen_show, host.mm, start, stop, *bits)
                )
            check(found, f"{host.name}: looking at its pages")


def can_look() -> bool:
    """Whether Linux tells which pages are mapped: Linux 6.7. For a thread."""
    with proc.open_pagemap(os.getpid()) as file:
        bits = ffi.new("uint8_t[1]")
        return int(lib.seen_pages(file.fileno(), 0, _PAGE, 0, bits, bits)) == 0


def parts_of(
    files: dict[tuple[int, int], int], before: dict[int, list[Part]]
) -> tuple[dict[int, list[Part]], set[int]]:
    """The parts that are mapped of each file, and the processes that could not be seen.

    Of those, what they had `before`.
    """
    devices = {device for device, _ in files}

    def at(pid: int) -> list[proc.Mapping]:
        try:
            return list(proc.maps(pid, devices, shared=True))
        except (ProcessLookupError, PermissionError):
            return []

    looked = looking.look(psutil.pids(), at, SEEN_SECONDS)
    found: dict[int, list[Part]] = defaultdict(list)
    for pid, mappings in looked.seen.items():
        for one in mappings:
            ident = files.get((one.device, one.inode))
            if ident is not None:
                end = one.offset + one.end - one.start
                found[ident].append(Part(pid, one.start, one.offset, end))
    unseen = looked.unknown
    for ident in files.values():
        found[ident] += [part for part in before.get(ident, ()) if part.pid in unseen]
    return dict(found), unseen


def _pieces(parts: list[Part], end: int) -> Iterator[tuple[int, int, bool]]:
    """Pieces of a file, and whether anything of each is mapped: one that is not is of any size."""
    used = {
        number
        for part in parts
        for number in range(part.start // _PIECE_BYTES, (part.end - 1) // _PIECE_BYTES + 1)
    }
    at = 0
    for number in sorted(used):
        start, stop = number * _PIECE_BYTES, min(end, (number + 1) * _PIECE_BYTES)
        if start >= end:
            break
        if at < start:
            yield at, start, False
        yield start, stop, True
        at = stop
    if at < end:
        yield at, end, False


def pages_of(parts: list[Part], start: int, stop: int) -> tuple[Any, Any]:
    """The pages of a piece of a file that anybody has in page tables: two arrays of seen.h.

    Without those of a process that does not let us see them now.
    """
    cells = -(-(stop - start) // _CELL)
    pages = ffi.new("uint8_t[]", cells * _CELL // _PAGE // 8)
    small = ffi.new("uint8_t[]", -(-cells // 8))
    inside = dict(_inside(parts, start, stop))

    def at(pid: int) -> int:
        try:
            with proc.open_pagemap(pid) as file:
                for address, low, high in inside[pid]:
                    found = lib.seen_pages(
                        file.fileno(), address, address + high - low, low - start, pages, small
                    )
                    if found < 0:
                        return int(found)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0

    for pid, result in looking.look(inside, at, SEEN_SECONDS).seen.items():
        if result not in (-errno.ESRCH, -errno.EACCES, -errno.EPERM):  # gone, or not ours to see
            check(result, f"looking at the page tables of process {pid}")
    return pages, small


def _inside(
    parts: list[Part], start: int, stop: int
) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """By process: address, and start and end in the file, of what lies in the piece."""
    of: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for part in parts:
        low, high = max(part.start, start), min(part.end, stop)
        if low < high:
            of[part.pid].append((part.address + low - part.start, low, high))
    yield from of.items()
