"""Looking at one process: its mappings, and which pages of them are in its page tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from msharefs import proc
from msharefs.lab.pagemap import END, PAGE_SHIFT, START, WHAT, Pagemap

from . import spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .objects import Objects
    from .spans import Ints

# Mappings with less than this between them are walked in one go: the kernel leaps over holes.
_GAP_PAGES = 1 << 18
_RUNS, _PIECES = 1 << 16, 1 << 12
_ADDRESSES_END = 1 << 56  # of programs, with five levels; [vsyscall] is above


class Vmas(NamedTuple):
    """The mappings of a process, in order of their addresses; in pages."""

    start: Ints
    end: Ints
    offset: Ints
    number: Ints
    """Of the object; -1: the process's own private memory."""
    shared: Ints
    """1: MAP_SHARED."""
    rights: Ints
    """1: read, 2: write, 4: execute."""
    huge: Ints
    """Pages in a page of hugetlbfs; 0: ordinary memory."""


class Rows(NamedTuple):
    """Ranges of pages [first, last) that have entries, none across a 2 MiB boundary."""

    vma: Ints
    first: Ints
    last: Ints
    what: Ints
    """`pagemap.PRESENT` and so on."""
    weight: np.ndarray
    """More than 1 in a sample: it stands for so many ranges."""


@dataclass
class Process:
    """A process that we may look at."""

    pid: int
    program: str
    vmpte_bytes: int
    birth: tuple[int, ...]
    """The same in processes of which one forked the other, since execve(2)."""
    vmas: Vmas = field(repr=False)


def vmpte(pid: int) -> int:
    """Bytes of a process's page tables, the PGD left out; 0 of a kernel thread. OSError: gone."""
    size = proc.status(pid, "VmPTE")
    return int(size.removesuffix(" kB")) << 10 if size else 0


def meet(pid: int, objects: Objects) -> Process | None:
    """A process and its mappings; None if it has ended. PermissionError: we may not look at it."""
    program, size, birth = proc.comm(pid), vmpte(pid), proc.birth(pid)
    space = proc.ipc_namespace(pid)
    lines = []
    for mapping in proc.maps(pid):
        if mapping.end > _ADDRESSES_END:
            continue
        number = objects.number(pid, space, program, mapping)
        rights = sum(
            bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in mapping.prot
        )
        huge = objects.all[number].huge if number >= 0 else 0
        lines.append((
            mapping.start >> PAGE_SHIFT, mapping.end >> PAGE_SHIFT, mapping.offset >> PAGE_SHIFT,
            number, mapping.prot[3] == "s", rights, huge >> PAGE_SHIFT,
        ))  # fmt: skip
    if not lines:
        return None
    objects.count(objects.private_memory(program), pid, program)
    return Process(pid, program, size, birth, Vmas(*np.array(lines, np.int64).T.copy()))


def windows(start: Ints, end: Ints) -> Iterator[tuple[int, int]]:
    """Addresses to walk, from mappings in pages: with the small holes between them."""
    breaks = np.flatnonzero(start[1:] - end[:-1] >= _GAP_PAGES) + 1
    firsts, lasts = np.append(0, breaks), np.append(breaks, len(start))
    for first, last in zip(firsts, lasts, strict=True):
        yield int(start[first]) << PAGE_SHIFT, int(end[last - 1]) << PAGE_SHIFT


def everything(process: Process, table: Pagemap, *, scans: bool = True) -> Iterator[Rows]:
    """All ranges that have entries. `scans`: there is PAGEMAP_SCAN."""
    start, end = process.vmas.start, process.vmas.end
    if scans:
        yield from walked(process.vmas, table, windows(start, end))
        return
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        for found in table.runs_by_entries(low << PAGE_SHIFT, high << PAGE_SHIFT):
            yield rows(process.vmas, found)


def walked(vmas: Vmas, table: Pagemap, places: Iterable[tuple[int, int]]) -> Iterator[Rows]:
    """The ranges that have entries in these places; many runs at a time."""
    found: list[np.ndarray] = []
    count = 0
    for low, high in places:
        for runs in table.runs(low, high):
            found.append(runs)
            count += len(runs)
            if count > _RUNS or len(found) > _PIECES:
                yield rows(vmas, np.concatenate(found))
                found, count = [], 0
    if found:
        yield rows(vmas, np.concatenate(found))


def rows(vmas: Vmas, runs: np.ndarray, weight: float = 1.0) -> Rows:
    """Runs of PAGEMAP_SCAN, cut at the ends of mappings and at each 2 MiB."""
    first = (runs[:, START] >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    last = (runs[:, END] >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    inside, vma = spans.meet(first, last, vmas.start, vmas.end)
    parts = spans.cut(inside.first, inside.last, spans.BITS)
    what = runs[:, WHAT].astype(np.int64)[inside.row][parts.row]
    return Rows(vma[parts.row], parts.first, parts.last, what, np.full(len(what), weight))


def join(many: list[Rows]) -> Rows:
    """All of them, one after the other."""
    if not many:
        nothing = np.empty(0, np.int64)
        return Rows(nothing, nothing, nothing, nothing, np.empty(0))
    return Rows(*(np.concatenate(columns) for columns in zip(*many, strict=True)))


def pages(
    table: Pagemap, first: Ints, last: Ints, most: int = 1 << 20
) -> Iterator[tuple[Ints, spans.Hashes]]:
    """Page numbers in these ranges, in order, and their entries: some at a time."""
    if not len(first):
        return
    # Ranges that adjoin are read together.
    breaks = np.flatnonzero(first[1:] != last[:-1]) + 1
    starts = first[np.append(0, breaks)]
    ends = last[np.append(breaks, len(first)) - 1]
    numbers, found, count = [], [], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for at in range(start, end, most):
            entries = table.entries(at, min(most, end - at))
            numbers.append(np.arange(at, at + len(entries)))
            found.append(entries)
            count += len(entries)
            if count >= most:
                yield np.concatenate(numbers), np.concatenate(found)
                numbers, found, count = [], [], 0
    if count:
        yield np.concatenate(numbers), np.concatenate(found)
