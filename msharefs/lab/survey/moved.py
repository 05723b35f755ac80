"""Sharing as the series does it: memory is moved into a region, whose tables are there once.

A process then links the region's tables, wherever it maps it, and has none of its own below the
link; above it keeps what it has. What is counted, in tables of 4 KiB by level:

- own: tables in which a process has pages of an object; two objects may lie in one table;
- gone: those of them in which it has nothing else, so that they go away;
- host: the tables of the object itself, with what anybody touched, from offset 0 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from msharefs.lab.pagemap import FILE, HUGE

from . import spans
from .look import Process, Rows
from .spans import LEVELS, Ints
from .tally import Tally

if TYPE_CHECKING:
    from .objects import Objects

_HUGE_PAGES = 1 << 9  # pages of 4 KiB in one of 2 MiB


def leaf(process: Process, rows: Rows) -> Ints:
    """The level of the table in which each range has its entries.

    An anonymous transparent huge page counts as level 0, as in VmPTE: Linux keeps a PTE table ready
    for the day when it is split.
    """
    huge = process.vmas.huge[rows.vma]
    whole = (rows.what & (HUGE | FILE)) == HUGE | FILE
    found = np.where(whole | (huge == _HUGE_PAGES), 1, 0)
    return np.where(huge > _HUGE_PAGES, 2, found)


class Moved:
    """Counts, process by process."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        count = len(objects.all)
        self.common = np.array([found.processes > 1 for found in objects.all], bool)
        """Which objects are mapped by several processes."""
        self.own, self.gone = np.zeros((3, count)), np.zeros((3, count))
        self.host = tuple(Tally() for _ in LEVELS)
        self._linked = Tally()
        self.counted = 0.0
        """All tables of the processes that were looked at in which there is an entry."""

    def movable(self, process: Process) -> np.ndarray:
        """Which mappings are MAP_SHARED of an object that several processes map."""
        vmas = process.vmas
        found: np.ndarray = (vmas.shared == 1) & (vmas.number >= 0) & self.common[vmas.number]
        return found

    def add(
        self, process: Process, base: Rows, upper: Rows, factor: float = 1.0, scale: float = 1.0
    ) -> float:
        """Count a process, `base` for PTE tables, `upper` for those above: its tables that go.

        `factor` is what the counts of a sample are multiplied with, `scale` those of all: as many
        processes are there for each that is looked at.
        """
        gone = 0.0
        for level in LEVELS:
            rows = upper if level else base
            mask = leaf(process, rows) <= level
            rows = Rows(*(column[mask] for column in rows))
            gone += self._level(process, rows, level, factor, scale)
        self._link(process, upper, scale)
        return gone

    def _level(
        self, process: Process, rows: Rows, level: int, factor: float, scale: float
    ) -> float:
        vmas, count = process.vmas, len(self._objects.all)
        table = rows.first >> spans.shift(level)
        moves = self.movable(process)[rows.vma] & (rows.what & FILE != 0)
        number = vmas.number[rows.vma]
        different, first, inverse = np.unique(table, return_index=True, return_inverse=True)
        weights = rows.weight * np.where(rows.weight > 1, factor, 1.0) * scale
        weight = weights[first]
        stays = np.bincount(inverse.reshape(-1), ~moves, len(different)) > 0
        # A table with two objects in it is put down to the first.
        self.gone[level] += np.bincount(number[first[~stays]], weight[~stays], count)[:count]
        pairs, at = np.unique(table[moves] * count + number[moves], return_index=True)
        self.own[level] += np.bincount(pairs % count, weights[moves][at], count)
        self._host(process, Rows(*(column[moves] for column in rows)), level, scale)
        self.counted += float(weight.sum()) / scale
        return float(weight[~stays].sum())

    def _host(self, process: Process, rows: Rows, level: int, scale: float) -> None:
        vmas, bits = process.vmas, spans.shift(level)
        start = vmas.offset[rows.vma] + rows.first - vmas.start[rows.vma]
        # A span in a sample stands for that in which it starts: each was chosen by its offset.
        length = np.where(rows.weight > 1, 1, rows.last - rows.first)
        parts = spans.cut(start, start + length, bits)
        vma = rows.vma[parts.row]
        number = vmas.number[vma]
        keys = spans.mix(number, vmas.rights[vma], parts.first >> bits)
        keys, first = np.unique(keys, return_index=True)
        self.host[level].add(keys, number[first], rows.weight[parts.row][first], scale=scale)

    def _link(self, process: Process, rows: Rows, scale: float) -> None:
        """PMD tables that Linux itself shares, as huge_pmd_share() does: of whole gigabytes."""
        vmas = process.vmas
        bits = spans.shift(1)
        table = rows.first >> bits
        vma = rows.vma
        whole = (vmas.start[vma] <= table << bits) & (vmas.end[vma] >= (table + 1) << bits)
        shared = whole & (vmas.huge[vma] == _HUGE_PAGES) & (vmas.shared[vma] == 1)
        table, first = np.unique(table[shared], return_index=True)
        vma = vma[shared][first]
        offset = vmas.offset[vma] + (table << bits) - vmas.start[vma]
        keys = spans.mix(vmas.number[vma], vmas.rights[vma], offset)
        self._linked.add(keys, vmas.number[vma], scale=scale)

    def linked(self) -> np.ndarray:
        """Tables that VmPTE counts in each process, though they are there once; by object."""
        return self._linked.spare(len(self._objects.all))
