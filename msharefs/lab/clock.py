"""Reclaim as a simulation: what is thrown out where a page has one accessed bit, and where many.

Two views of the same references. `shared`: a page has one bit, whoever uses it, as in a page table
that is everybody's. `each`: it has one in each process's table, and reclaim, which asks all of
them, sees how many are set (Linux's rmap, folio_referenced()). Only a rule that asks how many can
tell one from the other: Linux's is that a page which more than one process has used since the last
look has not only a second chance (folio_check_references()).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARED, EACH = "shared", "each"
SEVERAL = 2
"""So many bits say that a page is not one process's own affair."""


@dataclass
class Outcome:
    """What became of a list of references."""

    faults: int = 0
    """References to pages that were not in memory."""
    refaults: int = 0
    """Those of them to pages that had been thrown out."""
    thrown_out: int = 0
    wrongly: int = 0
    """Refaults that another choice had spared: of a page that stayed, nobody made use since."""


class Reclaim(ABC):
    """Memory of a fixed number of pages, and who has to leave it. `view`: SHARED or EACH."""

    def __init__(self, memory: int, view: str) -> None:
        self._memory = memory
        self._counts = view == EACH
        self._bits: dict[int, set[int]] = {}
        """Of pages in memory: the accessed bits that are set."""
        self._used: OrderedDict[int, int] = OrderedDict()
        """Of pages in memory, the number of their last reference; the oldest first."""
        self._out: dict[int, int] = {}
        """Of pages thrown out, when."""
        self._now = 0
        self.outcome = Outcome()

    def refer(self, process: int, page: int) -> None:
        """A process uses a page."""
        self._now += 1
        if page not in self._used:
            self._fault(page)
        self._used[page] = self._now
        self._used.move_to_end(page)
        self._bits[page].add(process if self._counts else 0)

    def _fault(self, page: int) -> None:
        self.outcome.faults += 1
        if page in self._out:
            self.outcome.refaults += 1
            oldest = next(iter(self._used.values()))
            self.outcome.wrongly += oldest < self._out.pop(page)
        if len(self._used) == self._memory:
            self._throw_out(self.leaving())
        self._bits[page] = set()
        self.came(page)

    def _throw_out(self, page: int) -> None:
        del self._used[page], self._bits[page]
        self._out[page] = self._now
        self.outcome.thrown_out += 1

    def look(self, page: int) -> int:
        """How many bits of the page are set; they are cleared."""
        bits = self._bits[page]
        count = len(bits)
        bits.clear()
        return count

    @abstractmethod
    def came(self, page: int) -> None:
        """The page is in memory."""

    @abstractmethod
    def leaving(self) -> int:
        """The page that has to leave; it is forgotten."""


class Clock(Reclaim):
    """One ring and a hand. A page with a bit stays for a turn, one with several for two."""

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self._ring: list[int] = []
        self._hand = 0
        self._spare: set[int] = set()
        """Pages that have another turn to go."""

    def came(self, page: int) -> None:
        """In the place of the one that left, and the hand goes on."""
        if len(self._ring) < self._memory:
            self._ring.append(page)
        else:
            self._ring[self._hand] = page
            self._hand = (self._hand + 1) % self._memory

    def leaving(self) -> int:
        """The first one from the hand on that has no turn to go."""
        while True:
            page = self._ring[self._hand]
            count = self.look(page)
            if count >= SEVERAL:
                self._spare.add(page)
            elif not count:
                if page not in self._spare:
                    return page
                self._spare.remove(page)
            self._hand = (self._hand + 1) % self._memory


class TwoLists(Reclaim):
    """Linux's active and inactive list, by the rules of folio_check_references().

    Without those for files and programs, and without the shadow entries of pages that have left.
    """

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self._inactive: deque[int] = deque()
        self._active: deque[int] = deque()
        self._referenced: set[int] = set()
        """PG_referenced: a bit was found at the last look."""

    def came(self, page: int) -> None:
        """New pages are inactive."""
        self._inactive.append(page)

    def leaving(self) -> int:
        """The first inactive page that has not been used."""
        while True:
            if len(self._inactive) <= len(self._active):
                demoted = self._active.popleft()
                self.look(demoted)
                self._inactive.append(demoted)
            page = self._inactive.popleft()
            count = self.look(page)
            if not count:
                self._referenced.discard(page)
                return page
            to = self._inactive
            if count >= SEVERAL or page in self._referenced:
                to = self._active
            self._referenced.add(page)
            to.append(page)


class TwoGenerations(Reclaim):
    """Two generations, as MGLRU has at least: nobody asks how many bits a page has.

    A page that was used moves to the young one. When the old one is empty, a look at all young
    pages tells which of them are old now: those without a bit. Without tiers, and without the
    generations in between.
    """

    def __init__(self, memory: int, view: str) -> None:
        super().__init__(memory, view)
        self._old: deque[int] = deque()
        self._young: deque[int] = deque()

    def came(self, page: int) -> None:
        """New pages are young."""
        self._young.append(page)

    def leaving(self) -> int:
        """The first old page that has not been used."""
        while True:
            if not self._old:
                self._age()
            else:
                page = self._old.popleft()
                if not self.look(page):
                    return page
                self._young.append(page)

    def _age(self) -> None:
        young, self._young = self._young, deque()
        for page in young:
            (self._young if self.look(page) else self._old).append(page)


POLICIES: dict[str, type[Reclaim]] = {
    "CLOCK": Clock,
    "two lists": TwoLists,
    "two generations": TwoGenerations,
}


def play(policy: str, memory: int, view: str, references: Iterable[tuple[int, int]]) -> Outcome:
    """All references in their order, from empty memory on."""
    reclaim = POLICIES[policy](memory, view)
    for process, page in references:
        reclaim.refer(process, page)
    return reclaim.outcome
