"""Sharing tables where they are, of whatever is in them: nothing is moved, programs stay unchanged.

A table can be the same for two processes if both have the same mappings in its whole span, with the
same rights, and no page of their own there. A page that only one of them has touched is no obstacle
if the other's fault would find it too: a page of an object. A private page is there for both or for
none. So two tables are the same if these two hashes are:

- the layout: each mapping's part of the span, with object, offset and rights;
- the private pages: place in the span, and page frame (or place in swap).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from msharefs.lab import pagemap
from msharefs.lab.pagemap import FILE

from . import spans
from .look import Process, Rows, pages
from .moved import leaf
from .objects import CLASSES, FORKED, RELRO, SHARED, UNWRITTEN, Objects
from .spans import LEVELS, Hashes, Ints
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msharefs.lab.pagemap import Pagemap

KINDS = tuple(CLASSES)
_PRIVATE = {kind: KINDS.index(kind) for kind in (UNWRITTEN, RELRO, FORKED)}
_WRITE = 2
_ALONE = 0xA10E
_KEPT_PAGES = 1 << 20


class InPlace:
    """Counts, process by process."""

    def __init__(self, objects: Objects, forked: set[tuple[int, ...]], *, frames: bool) -> None:
        self._objects = objects
        self.forked = forked
        """The births that several processes have."""
        self.frames = frames
        self.same = tuple(Tally() for _ in LEVELS)
        """At the same address, by level."""
        self.any = tuple(Tally() for _ in LEVELS)
        """At any address at which the tables begin at the same place."""
        self.rest = Tally()
        """PTE tables at the same address, when shared memory has been moved away."""
        self.unwritten = Tally()
        """The same, had no process of a family written to private memory since it was forked."""

    def codes(self) -> int:
        """A code is an object and a class: one more than the largest."""
        return len(self._objects.all) * len(KINDS)

    def by_kind(self, counts: np.ndarray) -> dict[str, float]:
        """What a tally says by code, summed up by class."""
        table = counts.reshape(-1, len(KINDS)).sum(axis=0)
        return dict(zip(KINDS, table.tolist(), strict=True))

    def by_object(self, counts: np.ndarray) -> np.ndarray:
        """What a tally says by code: a line for each object, a column for each class."""
        return counts.reshape(-1, len(KINDS))

    def add(
        self,
        process: Process,
        table: Pagemap,
        looks: tuple[Rows, Rows],
        movable: np.ndarray,
        scale: float = 1.0,
    ) -> None:
        """Count a process: `looks` for PTE tables, and for those above.

        `movable`: which of its mappings the series would move away. `scale`: as many processes are
        there for each that is looked at.
        """
        base, upper = looks
        levels = leaf(process, base)
        low = Rows(*(column[levels == 0] for column in base))
        private = _Private(self, process, table, base)
        sizes = None
        for level in LEVELS:
            rows = low if level == 0 else _below(upper, leaf(process, upper), level)
            if not len(rows.vma):
                continue
            found = _Tables(self._objects, process, rows, level)
            content = found.layout(np.ones(len(movable), bool)) + private.hashes(found)
            counts = np.ones(len(found.spans)) if sizes is None else sizes.into(found)
            self.any[level].add(
                spans.mix(content, level), found.codes, found.weights, counts, scale
            )
            self.same[level].add(
                spans.mix(content, found.spans), found.codes, found.weights, counts, scale
            )
            if level == 0:
                self._without(process, rows, private, movable, scale)
            sizes = _Sizes(found, counts)

    def _without(
        self,
        process: Process,
        rows: Rows,
        private: _Private,
        movable: np.ndarray,
        scale: float,
    ) -> None:
        rows = Rows(*(column[~movable[rows.vma]] for column in rows))
        if not len(rows.vma):
            return
        found = _Tables(self._objects, process, rows, 0)
        layout = found.layout(~movable)
        own = private.hashes(found)
        codes, weights = found.codes, found.weights
        self.rest.add(spans.mix(layout + own, found.spans), codes, weights, scale=scale)
        family = np.where(own != 0, private.family, np.uint64(0))
        self.unwritten.add(spans.mix(layout + family, found.spans), codes, weights, scale=scale)


def _below(rows: Rows, levels: Ints, level: int) -> Rows:
    return Rows(*(column[levels <= level] for column in rows))


class _Sizes:
    """How many tables there are below each one."""

    def __init__(self, found: _Tables, counts: np.ndarray) -> None:
        self._spans = found.spans
        self._counts = counts * found.weights

    def into(self, found: _Tables) -> np.ndarray:
        """The table itself, and all below it."""
        at = np.searchsorted(found.spans, self._spans >> spans.BITS)
        # A table in a sample may be below one that was empty when the sample was taken.
        at = np.minimum(at, len(found.spans) - 1)
        return 1 + np.bincount(at, self._counts, len(found.spans))


class _Tables:
    """The tables of one level of a process."""

    def __init__(self, objects: Objects, process: Process, rows: Rows, level: int) -> None:
        self.level = level
        self._process = process
        self._bits = spans.shift(level)
        table = rows.first >> self._bits
        kinds = _kinds(objects, process, rows)
        order = np.lexsort((-kinds, table))
        self.spans, first = np.unique(table[order], return_index=True)
        hardest = order[first]
        self.weights = rows.weight[hardest]
        number = process.vmas.number[rows.vma[hardest]]
        if (number < 0).any():
            number = np.where(number < 0, objects.private_memory(process.program), number)
        self.codes = number * len(KINDS) + kinds[hardest]

    def layout(self, counted: np.ndarray) -> Hashes:
        """A hash of the mappings in each table's span, at any address."""
        vmas, bits = self._process.vmas, self._bits
        low = np.searchsorted(self.spans, vmas.start >> bits)
        high = np.searchsorted(self.spans, (vmas.end - 1) >> bits, "right")
        vma, place = spans.repeat(np.where(counted, high - low, 0))
        at = low[vma] + place
        start = self.spans[at] << bits
        first = np.maximum(vmas.start[vma], start)
        last = np.minimum(vmas.end[vma], start + (1 << bits))
        number = vmas.number[vma]
        offset = np.where(number < 0, 0, vmas.offset[vma] + first - vmas.start[vma])
        rights = vmas.rights[vma] + 8 * vmas.shared[vma]
        found = np.zeros(len(self.spans), np.uint64)
        np.add.at(found, at, spans.mix(number + 1, offset, first - start, last - first, rights))
        return found

    def place(self, numbers: Ints) -> Ints:
        """Which table each page is in; `len(spans)` for none."""
        span = numbers >> self._bits
        at = np.searchsorted(self.spans, span)
        known = self.spans[np.minimum(at, len(self.spans) - 1)] == span
        return np.where(known, at, len(self.spans))


def _kinds(objects: Objects, process: Process, rows: Rows) -> Ints:
    """The class of each range, as its place in `KINDS`."""
    vmas = process.vmas
    of_object = np.array([KINDS.index(found.kind) for found in objects.all], np.int64)
    number = vmas.number[rows.vma]
    kinds = of_object[number] if len(of_object) else np.zeros(len(number), np.int64)
    own = (vmas.shared[rows.vma] == 0) & (rows.what & FILE == 0)
    sealed = own & (number >= 0) & (vmas.rights[rows.vma] & _WRITE == 0)
    kinds = np.where(own | (number < 0), _PRIVATE[FORKED], kinds)
    return np.where(sealed, _PRIVATE[RELRO], kinds)


class _Private:
    """The private pages of a process: a hash for each table."""

    def __init__(self, made: InPlace, process: Process, table: Pagemap, rows: Rows) -> None:
        own = (process.vmas.shared[rows.vma] == 0) & (rows.what & FILE == 0)
        self._rows = Rows(*(column[own] for column in rows))
        self._table, self._frames = table, made.frames
        self._related = process.birth in made.forked
        self._mine = spans.mix(process.pid, _ALONE)
        self.family = spans.mix(*process.birth)[0] if self._related else self._mine[0]
        self._kept: list[tuple[Ints, Hashes]] | None = None
        """So that they are read once for all levels, where they are not too many."""
        if int((self._rows.last - self._rows.first).sum()) <= _KEPT_PAGES:
            self._kept = list(self._read()) if self._related else []

    def _read(self) -> Iterator[tuple[Ints, Hashes]]:
        """Page numbers, and a hash of which page each is."""
        # The pages of a process that ends meanwhile are missed; it is not counted then.
        with contextlib.suppress(OSError):
            for numbers, entries in pages(self._table, self._rows.first, self._rows.last):
                if self._frames:
                    which = spans.mix(pagemap.frames(entries))
                else:
                    which = np.where(pagemap.alone(entries), self._mine, np.uint64(0))
                yield numbers, which

    def hashes(self, found: _Tables) -> Hashes:
        """Of the private pages in each table; 0: it has none."""
        sums = np.zeros(len(found.spans) + 1, np.uint64)
        if self._related:
            inside = (1 << spans.shift(found.level)) - 1
            for numbers, which in self._read() if self._kept is None else self._kept:
                np.add.at(sums, found.place(numbers), spans.mix(numbers & inside, which))
        else:
            np.add.at(sums, found.place(self._rows.first), self._mine)
        return sums[:-1]


assert set(SHARED) < set(KINDS)
