"""A sample of what is there, where looking at everything would take long.

Spans of 2 MiB are drawn in mappings that are large, in processes whose page tables are large. A
span is drawn by a hash of its object and offset, so the same ones are looked at in all processes:
how many have it, and whether anybody does, is then known for each. Upper tables are all looked at,
and the edges of mappings, where a table may have something else in it.

Processes are drawn where there are very many, in each program so many in proportion.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from msharefs.lab.pagemap import PAGE_SHIFT, START
from msharefs.lab.plan import TABLE_BYTES

from . import spans
from .look import Process, Rows, Vmas, join, rows, walked, windows
from .moved import leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from msharefs.lab.pagemap import Pagemap

    from .objects import Objects
    from .spans import Ints

WANTED = 512
"""Spans with a table in a sample, or up to twice as many."""
_DEARER = 3
"""Asking for a span alone costs as much as walking so many tables."""
SECONDS = 15.0
"""Of a processor, for all processes: where they would take longer, some of them are drawn."""
_PROCESS_SECONDS = 6e-3
_TABLE_SECONDS = 4e-6
_SURELY = 0.2  # of those seconds: where so much is likely, it is measured how much it would be
_FIRST = 3  # processes of a program, to measure that
_LEAST = 30  # of a program, if it has as many
_PMD_BYTES = 1 << 30
_SURE = 3.0  # standard deviations
_LISTED = 1 << 22  # spans of which each one is asked whether it is in the sample: 8 TiB


class Drawn:
    """Which spans are looked at, and how many each stands for."""

    def __init__(self, objects: Objects, processes: Iterable[Process]) -> None:
        self._objects = objects
        most: dict[int, int] = defaultdict(int)
        for process in processes:
            tables = process.vmpte_bytes // TABLE_BYTES
            for vma in large(process):
                number = self._of(process.vmas, vma)
                length = _inside(process.vmas, vma)
                most[number] = max(most[number], min(tables, length[1] - length[0]))
        self.bits = {
            number: max(0, int(math.log2(tables / WANTED))) if tables > WANTED else 0
            for number, tables in most.items()
        }
        """By object, or -1 for private memory: one span in 2**bits is drawn."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """By object: spans drawn, of how many."""

    @staticmethod
    def _of(vmas: Vmas, vma: int) -> int:
        return int(vmas.number[vma]) if vmas.shared[vma] else -1

    def choose(self, process: Process, vma: int, span: Ints) -> tuple[Ints, float]:
        """Those of these spans of a mapping that are drawn, and their weight."""
        vmas = process.vmas
        number = self._of(vmas, vma)
        bits = self.bits[number]
        if not bits:
            return span, 1.0
        if number < 0:
            keys = spans.mix(*process.birth, span)
            whole = spans.mix(*process.birth, np.arange(*_inside(vmas, vma)[:2]))
        else:
            offset = int(vmas.offset[vma]) - int(vmas.start[vma]) + (span << spans.BITS)
            keys = spans.mix(number, offset >> spans.BITS)
            whole = None
        if number not in self.sizes:
            self.sizes[number] = self._size(number, whole, bits)
        drawn, of = self.sizes[number]
        return span[_drawn(keys, bits)], of / drawn

    def _size(self, number: int, whole: spans.Hashes | None, bits: int) -> tuple[int, int]:
        if whole is None:
            length = -(-self._objects.all[number].end >> PAGE_SHIFT + spans.BITS)
            if length > _LISTED:
                return max(1, length >> bits), length
            whole = spans.mix(number, np.arange(length))
        return max(1, int(_drawn(whole, bits).sum())), len(whole)


def _drawn(keys: spans.Hashes, bits: int) -> np.ndarray:
    drawn: np.ndarray = keys < np.uint64(1 << 64 - bits)
    return drawn


def large(process: Process) -> list[int]:
    """The mappings of which only a part is looked at.

    The kernel leaps over what is not there, so a large mapping with few tables is looked at whole.
    """
    vmas = process.vmas
    length = (vmas.end >> spans.BITS) - (-(-vmas.start >> spans.BITS))
    tables = np.minimum(length, process.vmpte_bytes // TABLE_BYTES)
    # Huge pages have no PTE tables: what there is of them is soon looked at.
    dear = (tables * tables > _DEARER * WANTED * length) & (vmas.huge == 0)
    found: list[int] = np.flatnonzero(dear).tolist()
    return found


def _inside(vmas: Vmas, vma: int) -> tuple[int, int]:
    """The spans that have nothing else in them."""
    return -(-int(vmas.start[vma]) >> spans.BITS), int(vmas.end[vma]) >> spans.BITS


def look(process: Process, table: Pagemap, drawn: Drawn) -> tuple[Rows, Rows]:
    """Ranges with entries, for PTE tables and for those above: a sample where it is much."""
    parts = large(process)
    whole = list(walked(process.vmas, table, _edges(process.vmas, parts)))
    base, upper = list(whole), list(whole)
    for vma in parts:
        firsts = _populated(process.vmas, vma, table)
        if len(firsts):
            upper.append(rows(process.vmas, firsts))
            base.append(_spans(process, vma, table, drawn, firsts))
    return join(base), join(upper)


def _edges(vmas: Vmas, parts: list[int]) -> Iterable[tuple[int, int]]:
    """Addresses of all mappings but the inside of the large ones."""
    start, end = vmas.start.copy(), vmas.end.copy()
    more: list[tuple[int, int]] = []
    for vma in parts:
        first, last = _inside(vmas, vma)
        more.append((last << spans.BITS, int(end[vma])))
        end[vma] = first << spans.BITS
    order = np.argsort(np.concatenate([start, [low for low, _ in more]]), kind="stable")
    starts = np.concatenate([start, [low for low, _ in more]]).astype(np.int64)[order]
    ends = np.concatenate([end, [high for _, high in more]]).astype(np.int64)[order]
    there = ends > starts
    if there.any():
        yield from windows(starts[there], ends[there])


def _populated(vmas: Vmas, vma: int, table: Pagemap) -> np.ndarray:
    """The first run of each gigabyte of a mapping that has a page in it."""
    first, last = _inside(vmas, vma)
    at, end = first << spans.BITS + PAGE_SHIFT, last << spans.BITS + PAGE_SHIFT
    found = []
    while at < end and (run := table.first(at, end)) is not None:
        found.append(run)
        at = (int(run[START]) // _PMD_BYTES + 1) * _PMD_BYTES
    return np.array(found, np.uint64).reshape(-1, 3)


def _spans(process: Process, vma: int, table: Pagemap, drawn: Drawn, firsts: np.ndarray) -> Rows:
    """The spans that are drawn, in the gigabytes where there is anything."""
    pmds = (firsts[:, START] // np.uint64(_PMD_BYTES)).astype(np.int64)
    every = ((pmds << spans.BITS)[:, None] + np.arange(1 << spans.BITS)).reshape(-1)
    first, last = _inside(process.vmas, vma)
    chosen, weight = drawn.choose(process, vma, every[(every >= first) & (every < last)])
    bits = spans.BITS + PAGE_SHIFT
    found = [table.span(span << bits, (span + 1) << bits) for span in chosen.tolist()]
    runs = np.concatenate([np.empty((0, 3), np.uint64), *found])
    return rows(process.vmas, runs, weight)


def calibrated(process: Process, base: Rows, upper: Rows) -> float | None:
    """What to multiply a sample with, so that all tables are as many as VmPTE says.

    VmPTE is exact, and has tables with no page in them too. So where it says much more than the
    sample, that is not the sample's fault: None.
    """
    sampled = base.weight > 1
    span, first = np.unique(base.first[sampled] >> spans.BITS, return_index=True)
    if not len(span):
        return 1.0
    weight = base.weight[sampled][first]
    levels = leaf(process, base)
    known = len(np.unique(base.first[~sampled & (levels == 0)] >> spans.BITS))
    levels = leaf(process, upper)
    for level in (1, 2):
        known += len(np.unique(upper.first[levels <= level] >> spans.shift(level)))
    factor = (process.vmpte_bytes // TABLE_BYTES - known) / float(weight.sum())
    likely = _SURE * math.sqrt((1 - 1 / float(weight.max())) / len(span))
    return factor if abs(factor - 1) <= likely else None


def processes(sizes: list[tuple[int, str, int]], measure: Callable[[list[int]], float]) -> set[int]:
    """Which of these processes are looked at: number, program, and bytes of page tables of each.

    `measure` looks at some of a program, and says how many seconds of a processor that took.
    """
    # With a table for each span of a mapping, a sample is as good as whole from this size on.
    most = _DEARER * 4 * WANTED
    programs: dict[str, list[int]] = defaultdict(list)
    likely: dict[str, float] = defaultdict(float)
    for pid, program, size in sizes:
        programs[program].append(pid)
        likely[program] += _PROCESS_SECONDS + _TABLE_SECONDS * min(size // TABLE_BYTES, most)
    if sum(likely.values()) <= SECONDS * _SURELY:
        return {pid for pid, _, _ in sizes}
    for program, pids in programs.items():
        order = np.argsort(spans.mix(np.array(pids)))
        pids[:] = [pids[place] for place in order.tolist()]
        if len(pids) > _LEAST:
            likely[program] = measure(pids[:_FIRST]) / _FIRST * len(pids)
    share = SECONDS / max(SECONDS, sum(likely.values()))
    return {
        pid for pids in programs.values() for pid in pids[: max(_LEAST, round(share * len(pids)))]
    }
