"""What a host mm must be, in plain Python: the model that the core is compared with.

The region is a row of cells between cut points, so that VMAs of half a terabyte cost as little as
those of a page. A cell is in one mapping or in none; faults fill entries of single pages.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from .core import EXEC, READ, WRITE, Fault, Look, Vma
from .rawmm import NX, PAGE, RW, US, A, D, P

# What a table of each level spans: the reach of one entry of the level above.
TABLE_SPANS = {0: 2 << 20, 1: 1 << 30, 2: 512 << 30}
BUSY = 8


@dataclass(frozen=True)
class Mapping:
    """What CREATE_MAPPING made; every cell of it holds the same."""

    serial: int
    prot: int
    busy: bool = False


@dataclass(frozen=True)
class Change:
    """A change that was published and not yet finished."""

    start: int
    end: int
    before: tuple[Mapping | None, ...]
    unmaps: bool


@dataclass
class Model:
    """A region with cut points `cuts`, bytes; the last one is its end."""

    cuts: tuple[int, ...]
    cells: list[Mapping | None] = field(init=False)
    leaves: dict[int, int] = field(default_factory=dict)
    """Region offset of each present page: the bits of its entry, without the address."""
    tables: set[tuple[int, int]] = field(default_factory=set)
    """Level and region offset of each table below the PGD."""
    serial: int = 0
    epoch: int = 2
    inside: dict[int, int] = field(default_factory=dict)
    """Slot of each client: the epoch its fault began in, 0 outside a fault."""
    pending: Change | None = None

    def __post_init__(self) -> None:
        self.cells = [None] * (len(self.cuts) - 1)

    def cell_of(self, offset: int) -> Mapping | None:
        """The mapping that holds a byte of the region."""
        return next(
            cell
            for cell, (start, end) in zip(self.cells, itertools.pairwise(self.cuts), strict=True)
            if start <= offset < end
        )

    def vmas(self) -> list[Vma]:
        """Neighbouring cells of one mapping are one VMA."""
        found: list[Vma] = []
        for cell, (start, end) in zip(self.cells, itertools.pairwise(self.cuts), strict=True):
            if cell is None:
                continue
            flags = cell.prot | (BUSY if cell.busy else 0)
            if found and (found[-1].end, *found[-1][2:]) == (start, flags, cell.serial):
                start = found.pop().start  # noqa: PLW2901  # the VMA goes on
            found.append(Vma(start, end, flags, cell.serial))
        return found

    def stragglers(self) -> set[int]:
        """Slots whose fault began on an older snapshot."""
        return {slot for slot, epoch in self.inside.items() if epoch and epoch < self.epoch}

    def begin(self, first: int, last: int, prot: int | None) -> None:
        """Publishes a mapping of cells [first, last), or their end if `prot` is None."""
        start, end = self.cuts[first], self.cuts[last]
        self.pending = Change(start, end, tuple(self.cells), unmaps=prot is None)
        if prot is None:
            busy = [cell and replace(cell, busy=True) for cell in self.cells[first:last]]
        else:
            self.serial += 1
            busy = [Mapping(self.serial, prot, busy=True)] * (last - first)
        self.cells[first:last] = busy
        self.epoch += 1

    def abort(self) -> None:
        """As if it had not begun."""
        assert self.pending is not None
        self.cells = list(self.pending.before)
        self.pending = None
        self.epoch += 1

    def finish(self) -> None:
        """Pages, their entries and the tables that no VMA needs any more are gone."""
        assert self.pending is not None
        start, end, unmaps = self.pending.start, self.pending.end, self.pending.unmaps
        self.pending = None
        self.leaves = {at: bits for at, bits in self.leaves.items() if not start <= at < end}
        self.tables = {
            (level, at)
            for level, at in self.tables
            if not (at < end and at + TABLE_SPANS[level] > start)
            or self._needed(at, at + TABLE_SPANS[level])
        }
        self.epoch += 1
        self.cells = [
            None if cell is None or (unmaps and cell.busy) else replace(cell, busy=False)
            for cell in self.cells
        ]

    def _needed(self, start: int, end: int) -> bool:
        return any(
            cell is not None and not cell.busy and low < end and high > start
            for cell, (low, high) in zip(self.cells, itertools.pairwise(self.cuts), strict=True)
        )

    def fault(self, offset: int, *, write: bool, look: Look, fill: int) -> Fault:
        """The verdict, and the entries that it leaves."""
        cell = self.cell_of(offset)
        if cell is None:
            return Fault("MAPERR")
        if cell.busy:
            return Fault("WAIT")
        if not cell.prot & WRITE if write else not cell.prot:
            return Fault("ACCERR")
        bits = P | US | (RW if cell.prot & WRITE else 0) | (0 if cell.prot & EXEC else NX)
        filled = int(offset not in self.leaves)
        self.leaves[offset] = self.leaves.get(offset, bits) | A | (D if write else 0)
        self.tables |= {(level, offset & -span) for level, span in TABLE_SPANS.items()}
        vma = next(vma for vma in self.vmas() if vma.start <= offset < vma.end)
        start, end = look(offset)
        pages = range(max(start, vma.start), min(end, vma.end), PAGE)
        for at in pages:
            if filled and filled < fill and at == offset + filled * PAGE and at not in self.leaves:
                self.leaves[at] = bits
                filled += 1
        present = frozenset(at for at in pages if at in self.leaves)
        return Fault("MAP", present, filled, not cell.prot & WRITE)

    def stray(self) -> int:
        """Entries that a change has cut off from their VMA and not yet cleared."""
        return sum(self.cell_of(at) is None for at in self.leaves)

    def too_permissive(self) -> int:
        """Entries with rights of the mapping that is being replaced."""
        return sum(
            bool(bits & RW) > bool(cell.prot & WRITE)
            or (not bits & NX) > bool(cell.prot & EXEC)
            or not cell.prot
            for at, bits in self.leaves.items()
            if (cell := self.cell_of(at)) is not None
        )


PROTECTIONS = (READ | WRITE, READ, 0, WRITE, EXEC, READ | WRITE | EXEC)
