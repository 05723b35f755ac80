"""A process's own, real page tables for a region: looked at once, for all that is asked of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msharefs import proc
from msharefs.native import lib

from .pagemap import HUGE, PRESENT, Pagemap
from .plan import PGD_SPAN, TABLE_BYTES
from .ptmap import CELL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Ranges = list[tuple[int, int]]


class Own(NamedTuple):
    """Bytes of a process's own page tables for a region, the PGD left out."""

    shareable: int
    """Tables that span a quantum or less: with sharing, the host mm has these."""
    upper: int
    """The tables above, which each process keeps: none with a quantum of 512 GiB."""


@dataclass(frozen=True)
class Held:
    """What a process has of a region."""

    own: Own
    cells: tuple[tuple[int, int], ...]
    """Cells of the region, [first, last), in which it has pages: in order, none twice."""

    def quanta(self, quantum: int) -> Iterator[int]:
        """The quanta of the region in which it has pages."""
        for first, last in self.cells:
            yield from range(
                first * CELL_BYTES // quantum, ((last - 1) * CELL_BYTES) // quantum + 1
            )


def look(pid: int, parts: Iterable[tuple[int, int, int]], quantum: int) -> Held | None:
    """What a process has of the parts of a region that it maps: address, bytes, offset of each.

    None if it cannot be seen: another user's process, or a kernel before 6.7.
    """
    there: dict[bool, Ranges] = {True: [], False: []}
    cells: Ranges = []
    try:
        with Pagemap(pid) as table:
            for base, size, offset in parts:
                for low, high, huge in _present(table, base, min(base + size, lib.HOST_END)):
                    _add(there[huge], low, high)
                    _add(cells, low - base + offset, high - base + offset)
    except ProcessLookupError:  # it has ended
        return Held(Own(0, 0), ())
    except OSError:
        return None
    found = {True: 0, False: 0}
    for span in (CELL_BYTES, 1 << 30, PGD_SPAN):
        per = span // CELL_BYTES
        # A page of 2 MiB has no PTE table.
        below = there[False] if span == CELL_BYTES else there[False] + there[True]
        tables = _merged([(low // per, (high - 1) // per + 1) for low, high in below])
        found[span <= quantum] += sum(last - first for first, last in tables) * TABLE_BYTES
    return Held(Own(found[True], found[False]), tuple(_merged(cells)))


def _present(table: Pagemap, base: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """What is there, and whether by pages of 2 MiB."""
    for runs in table.runs(base, end):
        for start, stop, what in runs.tolist():
            if what & PRESENT:
                yield start, stop, bool(what & HUGE)


def _add(ranges: Ranges, low: int, high: int) -> None:
    """A range of bytes, as cells; most of the time in the one that was added last."""
    first, last = low // CELL_BYTES, (high - 1) // CELL_BYTES + 1
    if ranges and ranges[-1][0] <= first <= ranges[-1][1]:
        ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
    else:
        ranges.append((first, last))


def _merged(ranges: Ranges) -> Ranges:
    """In order, and none twice."""
    found: Ranges = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def vmpte(pid: int) -> int:
    """Bytes of a process's own page tables; 0 if it is gone or a kernel thread."""
    try:
        size = proc.status(pid, "VmPTE")
    except (ProcessLookupError, PermissionError):
        return 0
    return int(size.removesuffix(" kB")) << 10 if size else 0


@dataclass
class Process:
    """A process in one look: what it had, all read in a moment."""

    pid: int
    start_time: int
    vmpte_bytes: int
    faults: int
    mapped: dict[tuple[int, int], list[proc.Mapping]]
    """Its shared mappings, by device and inode."""


def meet(pid: int, devices: set[int]) -> Process | None:
    """A process and its shared mappings of files on these devices; None: it has ended."""
    size = vmpte(pid)
    try:
        stat = proc.stat(pid)
    except ProcessLookupError:
        return None
    made = Process(pid, stat.start_time, size, stat.minor_faults + stat.major_faults, {})
    if devices:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for each in proc.maps(pid, devices, shared=True):
                made.mapped.setdefault((each.device, each.inode), []).append(each)
    return made
