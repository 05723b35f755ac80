"""A host mm in plain Python: the model that the core is compared with.

The region is a row of cells between cut points, so that VMAs of half a terabyte cost as little as
those of a page. A cell is in one mapping or in none. Faults fill entries of single pages; in a
file, those of all pages that the client maps together.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field, replace
from enum import Enum

from .core import EXEC, GUARD, READ, WRITE, Fault, Look, Vma
from .rawmm import MIB2, NX, PAGE, PROTNONE, PS, RW, US, A, D, P

# The span of a table of each level: the reach of one entry of the level above.
TABLE_SPANS = {0: 2 << 20, 1: 1 << 30, 2: 512 << 30}
BUSY, HUGE = 8, 16
OBJECT = 7  # the number of the only file


class Kind(Enum):
    """The kinds of mappings."""

    ANONYMOUS = "anonymous"
    FILE = "file"
    HUGE = "file of huge pages"


@dataclass(frozen=True)
class Mapping:
    """A mapping that CREATE_MAPPING made; all its cells hold this same object."""

    serial: int
    prot: int
    kind: Kind = Kind.ANONYMOUS
    busy: bool = False
    kept: int = 0
    """Other flags, which verbs have made."""

    @property
    def flags(self) -> int:
        """The flags of its VMAs."""
        huge = HUGE if self.kind is Kind.HUGE else 0
        return self.prot | self.kept | (BUSY if self.busy else 0) | huge

    @property
    def page(self) -> int:
        """Bytes of its pages."""
        return MIB2 if self.kind is Kind.HUGE else PAGE

    @property
    def bits(self) -> int:
        """The bits of its entries, except for A and D."""
        present = P if self.prot else PROTNONE
        rights = (RW if self.prot & WRITE else 0) | (0 if self.prot & EXEC else NX)
        return present | US | rights | (PS if self.kind is Kind.HUGE else 0)


@dataclass(frozen=True)
class Change:
    """A change that was published but not finished yet."""

    start: int
    end: int
    before: tuple[Mapping | None, ...]
    verb: str


@dataclass
class Model:
    """A region with cut points `cuts`, bytes; the last one is its end."""

    cuts: tuple[int, ...]
    cells: list[Mapping | None] = field(init=False)
    leaves: dict[int, int] = field(default_factory=dict)
    """By the region offset of each page with an entry: the entry's bits without the address."""
    of_file: set[int] = field(default_factory=set)
    """Those of them whose page belongs to a file."""
    tables: set[tuple[int, int]] = field(default_factory=set)
    """Level and region offset of each table below the PGD."""
    serial: int = 0
    epoch: int = 2
    inside: dict[int, int] = field(default_factory=dict)
    """By the slot of each client: the epoch in which its fault began, or 0 outside a fault."""
    pending: Change | None = None

    def __post_init__(self) -> None:
        self.cells = [None] * (len(self.cuts) - 1)

    def cell_of(self, offset: int) -> Mapping | None:
        """The mapping that holds a byte of the region."""
        return self.cells[self._number(offset)]

    def _number(self, offset: int) -> int:
        """The number of the cell that a byte is in."""
        return bisect.bisect_right(self.cuts, offset) - 1

    def _within(self, offset: int, start: int, end: int) -> tuple[int, int]:
        """The part of [start, end) that the VMA of the byte at `offset` holds."""
        first = last = self._number(offset)
        cell = self.cells[first]
        while self.cuts[first] > start and first and self.cells[first - 1] == cell:
            first -= 1
        while self.cuts[last + 1] < min(end, self.cuts[-1]) and self.cells[last + 1] == cell:
            last += 1
        return max(self.cuts[first], start), min(self.cuts[last + 1], end)

    def vmas(self) -> list[Vma]:
        """Neighbouring cells of one mapping are one VMA."""
        found: list[Vma] = []
        for cell, (start, end) in zip(self.cells, itertools.pairwise(self.cuts), strict=True):
            if cell is None:
                continue
            if found and (found[-1].end, *found[-1][2:]) == (start, cell.flags, cell.serial):
                start = found.pop().start  # noqa: PLW2901  # the VMA continues
            found.append(Vma(start, end, cell.flags, cell.serial))
        return found

    def stragglers(self) -> set[int]:
        """Slots whose fault began on an older snapshot."""
        return {slot for slot, epoch in self.inside.items() if epoch and epoch < self.epoch}

    def cuts_a_huge_page(self, first: int, last: int) -> bool:
        """Whether cells [first, last) begin or end inside a 2 MiB page."""
        return any(
            self.cuts[cut] % MIB2
            and 0 < cut < len(self.cells)
            and (cell := self.cells[cut]) is not None
            and cell.kind is Kind.HUGE
            for cut in (first, last)
        )

    def begin(
        self, verb: str, first: int, last: int, prot: int, kind: Kind = Kind.ANONYMOUS
    ) -> None:
        """Publishes the change `verb` (map, unmap, protect, drop, guard, remove) of some cells."""
        self.pending = Change(self.cuts[first], self.cuts[last], tuple(self.cells), verb)
        if verb == "map":
            self.serial += 1
            self.cells[first:last] = [Mapping(self.serial, prot, kind)] * (last - first)
        elif verb == "protect":
            self.cells[first:last] = [
                cell and replace(cell, prot=prot) for cell in self.cells[first:last]
            ]
        elif verb == "guard":
            self.flag(first, last, 0, GUARD)
        self.cells[first:last] = [
            cell and replace(cell, busy=True) for cell in self.cells[first:last]
        ]
        self.epoch += 1

    def flag(self, first: int, last: int, clear: int, flags: int) -> None:
        """Other flags for some cells."""
        self.cells[first:last] = [
            cell and replace(cell, kept=cell.kept & ~clear | flags)
            for cell in self.cells[first:last]
        ]

    def abort(self) -> None:
        """Takes the change back, as if it had not begun."""
        assert self.pending is not None
        self.cells = list(self.pending.before)
        self.pending = None
        self.epoch += 1

    def finish(self) -> None:
        """Entries have the new rights, or are gone with their pages and needless tables."""
        assert self.pending is not None
        change, self.pending = self.pending, None
        if change.verb == "protect":
            for at, bits in self.leaves.items():
                if change.start <= at < change.end:
                    self.leaves[at] = bits & (A | D) | self._mapping(at).bits
        else:
            self._zap(change.start, change.end)
        self.epoch += 1
        self.cells = [
            None
            if cell is None or (change.verb == "unmap" and cell.busy)
            else replace(cell, busy=False)
            for cell in self.cells
        ]

    def _mapping(self, offset: int) -> Mapping:
        cell = self.cell_of(offset)
        assert cell is not None
        return cell

    def _zap(self, start: int, end: int) -> None:
        self.leaves = {at: bits for at, bits in self.leaves.items() if not start <= at < end}
        self.of_file &= self.leaves.keys()
        self.tables = {
            (level, at)
            for level, at in self.tables
            if not (at < end and at + TABLE_SPANS[level] > start)
            or self._needed(at, at + TABLE_SPANS[level])
        }

    def _needed(self, start: int, end: int) -> bool:
        return any(
            cell is not None and not cell.busy and low < end and high > start
            for cell, (low, high) in zip(self.cells, itertools.pairwise(self.cuts), strict=True)
        )

    def fault(
        self, offset: int, *, write: bool, look: Look, fill: int, limit: int = 1 << 63
    ) -> Fault:
        """The verdict, and the entries that it leaves. A file ends at `limit`."""
        cell = self.cell_of(offset)
        if cell is None:
            return Fault("MAPERR")
        if cell.busy:
            return Fault("WAIT")
        if not cell.prot & WRITE if write else not cell.prot:
            return Fault("ACCERR")
        if cell.kept & GUARD:
            return Fault("MAPERR")
        pages = range(*self._within(offset, *look(offset)), PAGE)
        if cell.kind is not Kind.ANONYMOUS:
            filled = int(offset < limit and self._fill(cell, offset))
            if offset < limit:
                self.leaves[offset & -cell.page] |= A | (D if write else 0)
            beside = sum(self._fill(cell, at) for at in pages if at < limit)
            return Fault("MAP", frozenset(), filled, not cell.prot & WRITE, beside, OBJECT)
        filled = int(self._fill(cell, offset))
        self.leaves[offset] |= A | (D if write else 0)
        for at in pages:
            if filled and filled < fill and at == offset + filled * PAGE and at not in self.leaves:
                filled += self._fill(cell, at)
        present = frozenset(at for at in pages if at in self.leaves)
        return Fault("MAP", present, filled, not cell.prot & WRITE)

    def _fill(self, cell: Mapping, offset: int) -> bool:
        """Whether there was no entry for the page yet."""
        page = offset & -cell.page
        if page in self.leaves:
            return False
        self.leaves[page] = cell.bits
        if cell.kind is not Kind.ANONYMOUS:
            self.of_file.add(page)
        self.tables |= {
            (level, page & -span) for level, span in TABLE_SPANS.items() if span > cell.page
        }
        return True

    def stray(self) -> int:
        """Entries that a change has cut off from their VMA but not yet cleared."""
        return sum(self.cell_of(at) is None for at in self.leaves)

    def other_rights(self) -> int:
        """Entries with the rights that their mapping had before the change under way."""
        return sum(
            (at in self.of_file) != (cell.kind is not Kind.ANONYMOUS)
            or bits & PS != cell.bits & PS
            or bool(bits & RW) > bool(cell.prot & WRITE)
            or (not bits & NX) > bool(cell.prot & EXEC)
            or bool(bits & P) != bool(cell.prot)
            for at, bits in self.leaves.items()
            if (cell := self.cell_of(at)) is not None
        )


PROTECTIONS = (READ | WRITE, READ, 0, WRITE, EXEC, READ | WRITE | EXEC)
