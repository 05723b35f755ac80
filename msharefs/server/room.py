"""The memory that the place of the regions has, and what of it is promised.

Linux gives memory that is mapped without MAP_NORESERVE only if it can be had. Where regions are on
a file system with a size, that is one more bound: a page that does not fit is a SIGBUS at its first
touch, in a program that has done nothing wrong. So the mapping is refused.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from msharefs import home, units, verbs
from msharefs.mountpoint import PLACE_GONE, PLACE_NOEXEC, PLACE_OWN, PLACE_STRUCT

from . import limits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


# A table of 4 KiB for 512 pages, and the tables above it.
_PAGES_OF_TABLE = 510
_FEW_TABLES = 256 << 10


class Promised(Protocol):
    """A region, as far as its memory goes."""

    promised: int
    """Bytes that are mapped, and were asked for without MAP_NORESERVE."""

    def used_bytes(self) -> int:
        """Bytes of memory it takes."""

    def mapped_bytes(self) -> int:
        """Bytes that are mapped."""


class Room:
    """The room in directory `store`, of the state directory `state`."""

    def __init__(self, store: Path, state: Path) -> None:
        self._store = store
        self._state = state
        self.limited = home.room(store) is not None
        """A mount's size may change, but not whether it has one."""

    def check(self, more: int, regions: Iterable[Promised]) -> None:
        """ENOSPC: `more` bytes cannot be promised beside what these regions have been."""
        if not self.limited:
            return
        known = list(regions)
        free = home.room(self._store) or 0
        need = _with_tables(more)
        if need + sum(_with_tables(region.promised) for region in known) <= free:
            return
        for each in known:
            self.promise(each, 0)
        left = free - sum(max(0, _with_tables(each.promised) - each.used_bytes()) for each in known)
        if need > left:
            raise OSError(
                errno.ENOSPC,
                f"{units.size(more)} of anonymous memory: the file system of {self._state} has "
                f"room for {units.size(max(0, left))} beside what is mapped; map less, or with "
                "MAP_NORESERVE, or give it more room",
            )

    def check_executes(self, *, executes: bool) -> None:
        """EACCES: a program could not make memory there executable, as it can Linux's own."""
        if not executes:
            raise OSError(errno.EACCES, f"regions are in {self._state}, which is mounted noexec")

    def promise(self, region: Promised, more: int) -> None:
        """`more` bytes have been mapped in a region; others may have been unmapped."""
        if self.limited:
            region.promised = min(region.promised + more, region.mapped_bytes())

    def describe(self, *, gone: bool) -> bytes:
        """Answers PLACE_COMMAND."""
        found = os.statvfs(self._store)
        total = found.f_blocks * found.f_frsize
        flags = PLACE_OWN if home.is_own(self._state) else 0
        flags |= PLACE_NOEXEC if found.f_flag & os.ST_NOEXEC else 0
        flags |= PLACE_GONE if gone else 0
        return PLACE_STRUCT.pack(
            total if self.limited else 0,
            total - found.f_bfree * found.f_frsize,
            flags,
            os.fsencode(self._state),
        )


def _with_tables(size: int) -> int:
    """What `size` bytes of pages take with their page tables, which are shared."""
    return size + size // _PAGES_OF_TABLE + (_FEW_TABLES if size else 0)


def asks(create: verbs.Create) -> int:
    """How many bytes a CREATE wants to be promised.

    None, where Linux promises everything to everybody; but memory that is adopted must fit.
    """
    must = create.flags & verbs.MAP_MUST_FIT
    if not must and (create.flags & verbs.MAP_NORESERVE or limits.promises_all()):
        return 0
    return verbs.page_up(create.size)
