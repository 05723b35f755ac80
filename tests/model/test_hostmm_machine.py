"""The core against a model: any order of changes, faults, deaths and restarts.

After each step the whole state is compared: the core's audit, and the findings of a decoder of our
own in the bytes of the `.mm` object.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from msharefs.native import lib

from support.core import (
    GIB1,
    GIB512,
    GUARD,
    LOOKS,
    MIB2,
    PAGE,
    SEALED,
    Core,
    Look,
    block,
    check,
    page_only,
)
from support.model import OBJECT, PROTECTIONS, Kind, Model
from support.rawmm import DATA_BASE, HOST_BASE, OBJECTS_BASE, RW, US, A, P

if TYPE_CHECKING:
    from collections.abc import Iterable

CLIENTS = 4

# Without "explain": it traces every line, and the failing steps speak for themselves.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

picks = st.integers(0, 1 << 16)
"""Chooses one of the things that exist when the step runs."""


verbs = st.sampled_from(["map", "map", "unmap", "protect", "drop", "guard", "remove"])
kinds = st.sampled_from([Kind.ANONYMOUS, Kind.ANONYMOUS, Kind.FILE, Kind.HUGE])


class Region(RuleBasedStateMachine):
    """One region, its writer and up to four clients."""

    size: ClassVar[int]
    quantum: ClassVar[int]
    cuts: ClassVar[tuple[int, ...]]

    @initialize()
    def format(self) -> None:
        self.core = Core(self.size, self.quantum)
        self.model = Model(self.cuts)
        self.written: set[int] = set()

    def teardown(self) -> None:
        self.core.close()

    # Clients

    @precondition(lambda self: len(self.model.inside) < CLIENTS)
    @rule()
    def attach(self) -> None:
        slot = self.core.claim()
        assert slot == min(set(range(CLIENTS)) - set(self.model.inside)), "not the first free slot"
        self.model.inside[slot] = 0

    @precondition(lambda self: self.model.inside)
    @rule(who=picks, cell=picks, page=st.sampled_from([0, 1, -1]), write=st.booleans(),
          look=st.sampled_from(LOOKS), fill=st.sampled_from([1, 2, 16, 512]),
          pages=st.sampled_from([-1, 0, 1, 3, 1 << 40]))  # fmt: skip
    def touch(
        self, who: int, cell: int, page: int, write: bool, look: Look, fill: int, pages: int
    ) -> None:
        """A fault; of a client that is inside an epoch already, within that epoch.

        If it is in a file, that ends so many pages further on.
        """
        slot = self._client(who)
        offset = self._page(cell, page)
        found = self.model.cell_of(offset)
        if found is not None and found.kind is Kind.FILE:
            # All of a span would be as good, but takes long to decode after each step.
            look = page_only if look is page_only else block
        limit = max(0, offset + pages * PAGE)
        if found is not None:
            limit &= -found.page
        fault = self.core.fault if self.model.inside[slot] else self.core.touch
        said = fault(slot, offset, write=write, look=look, fill=fill, limit=limit)
        assert said == self.model.fault(offset, write=write, look=look, fill=fill, limit=limit)
        if said.verdict == "MAP" and not said.object:
            # A client's next step, done by other means.
            os.pwrite(self.core.mem_fd, b"\xa5" * PAGE, offset)
            self.written.add(offset)

    @precondition(lambda self: 0 in self.model.inside.values())
    @rule(who=picks)
    def enter(self, who: int) -> None:
        """A client that takes its time."""
        slot = self._client(who, inside=False)
        lib.slot_enter(self.core.mm, slot)
        self.model.inside[slot] = self.model.epoch

    @precondition(lambda self: any(self.model.inside.values()))
    @rule(who=picks)
    def leave(self, who: int) -> None:
        slot = self._client(who, inside=True)
        lib.slot_leave(self.core.mm, slot)
        self.model.inside[slot] = 0

    @precondition(lambda self: self.model.inside)
    @rule(who=picks)
    def die(self, who: int) -> None:
        """It detaches, or is killed inside a fault: the server takes its slot back."""
        slot = self._client(who)
        check(lib.slot_reap(self.core.mm, slot))
        del self.model.inside[slot]

    # The writer

    @precondition(lambda self: self.model.pending is None)
    @rule(verb=verbs, first=picks, count=picks, prot=st.sampled_from(PROTECTIONS), kind=kinds)
    def begin(self, verb: str, first: int, count: int, prot: int, kind: Kind) -> None:
        """Publishes; other steps may come before the rest of the change."""
        huge = kind is Kind.HUGE
        # Most of the time where huge pages can be.
        first, last = self._range(first, count, aligned=huge and count % 8 != 0)
        start, end = self.cuts[first], self.cuts[last]
        if verb == "map" and kind is Kind.ANONYMOUS:
            said = self.core.begin_map(start, end, prot)
        elif verb == "map":
            flags = prot | (lib.VMA_HUGE if huge else 0)
            said = self.core.begin_map(start, end, flags, file=OBJECT, offset=start)
        elif verb == "unmap":
            said = self.core.begin_unmap(start, end)
        elif verb == "protect":
            said = self.core.begin_protect(start, end, prot)
        elif verb == "remove":
            said = self.core.begin_remove(start, end)
        else:
            said = self.core.begin_drop(start, end, GUARD if verb == "guard" else 0)
        if self.model.stragglers():
            assert said == -errno.EBUSY
            # A serial number is spent on the attempt; nothing else happens.
            self.model.serial += verb == "map"
        elif self.model.cuts_a_huge_page(first, last) or (
            verb == "map" and huge and (start | end) % MIB2
        ):
            assert said == -errno.EINVAL
            self.model.serial += verb == "map"
        elif verb not in ("map", "unmap") and None in self.model.cells[first:last]:
            assert said == -errno.ENOMEM
        else:
            assert said == 0
            self.model.begin(verb, first, last, prot, kind)

    @precondition(lambda self: self.model.pending is None and not self.model.stragglers())
    @rule(verb=verbs, first=picks, count=picks, prot=st.sampled_from(PROTECTIONS), kind=kinds)
    def change(self, verb: str, first: int, count: int, prot: int, kind: Kind) -> None:
        """A whole change at once, unless somebody is inside a fault."""
        self.begin(verb, first, count, prot, kind)
        if self.model.pending and not self.model.stragglers():
            self.finish()

    @precondition(lambda self: self.model.pending is None)
    @rule(first=picks, count=picks, flag=st.sampled_from([GUARD, SEALED]), clear=st.booleans())
    def flag(self, first: int, count: int, flag: int, clear: bool) -> None:
        """Flags alone change at once; the core leaves it to the server what a seal forbids."""
        first, last = self._range(first, count)
        clears, sets = (flag, 0) if clear or flag == GUARD else (0, flag)
        said = self.core.flag(self.cuts[first], self.cuts[last], clears, sets)
        if self.model.stragglers():
            assert said == -errno.EBUSY
        elif self.model.cuts_a_huge_page(first, last):
            assert said == -errno.EINVAL
        elif None in self.model.cells[first:last]:
            assert said == -errno.ENOMEM
        else:
            assert said == 0
            self.model.flag(first, last, clears, sets)
            self.model.epoch += 1

    @precondition(lambda self: self.model.pending and not self.model.stragglers())
    @rule()
    def finish(self) -> None:
        assert self.core.finish() == 0
        self._finish_model()

    @precondition(lambda self: self.model.pending)
    @rule()
    def abort(self) -> None:
        self.core.abort()
        self.model.abort()

    @precondition(lambda self: not self.model.stragglers())
    @rule()
    def restart(self) -> None:
        """The server dies here; the next one finishes its change.

        A change of rights is taken back: the next server cannot know which clients still use them.
        """
        self.core.reopen()
        self.core.recover()
        if self.model.pending is None:
            return
        if self.model.pending.verb in ("protect", "drop", "guard"):
            self.model.abort()
        else:
            self._finish_model()

    # Invariants after each step

    @invariant()
    def audit_is_clean(self) -> None:
        audit = self.core.audit()
        levels = [level for level, _ in self.model.tables]
        assert audit.tables == (levels.count(0), levels.count(1), levels.count(2), 1)
        assert audit.leaves == len(self.model.leaves)
        in_flight = {"stray": self.model.stray(), "bad": self.model.other_rights()}
        if self.model.pending is None:
            assert not any(in_flight.values()), "the model itself is wrong"
        assert audit.problems() == {name: count for name, count in in_flight.items() if count}

    @invariant()
    def vmas_are_the_models(self) -> None:
        vmas = self.model.vmas()
        assert self.core.vmas() == vmas
        assert [(v[0], v[1], v[3], v[5]) for v in self.core.raw.vmas()] == vmas
        for index, (start, end) in enumerate(itertools.pairwise(self.cuts)):
            mapped = self.model.cells[index] is not None
            assert lib.hostmm_mapped(self.core.mm, start, end) == mapped

    @invariant()
    def bytes_are_the_models(self) -> None:
        tree = self.core.raw.tree()
        assert not tree.wrong
        assert tree.spans() == self.model.tables
        assert {leaf.offset: leaf.flags for leaf in tree.leaves.values()} == self.model.leaves
        for leaf in tree.leaves.values():
            base = OBJECTS_BASE if leaf.offset in self.model.of_file else DATA_BASE
            assert leaf.target + DATA_BASE == leaf.offset + base
        assert all(table.flags == P | RW | US | A for table in tree.tables[1:])
        assert self.core.raw.header("epoch") == self.model.epoch

    @invariant()
    def looks_agree(self) -> None:
        stat = self.core.stat()
        levels = [level for level, _ in self.model.tables]
        assert list(stat.table_frames) == [levels.count(0), levels.count(1), levels.count(2), 1]
        assert stat.page_table_bytes == PAGE * (len(levels) + 1)
        assert stat.vmas == len(self.model.vmas())
        assert stat.clients == len(self.model.inside)
        assert stat.rss == PAGE * len(self.written)
        tree = self.core.raw.tree()
        assert self.core.tables() == {
            (t.level, t.start - HOST_BASE, sum(e & P for _, e in self.core.raw.entries(t.frame)))
            for t in tree.tables[1:]
        }

    @invariant()
    def grace_waits_for_the_right_ones(self) -> None:
        stragglers = self.model.stragglers()
        assert self.core.straggler() == (min(stragglers) if stragglers else None)

    # Choices

    def _client(self, who: int, *, inside: bool | None = None) -> int:
        slots = [
            slot
            for slot, epoch in sorted(self.model.inside.items())
            if inside is None or bool(epoch) == inside
        ]
        return slots[who % len(slots)]

    def _range(self, first: int, count: int, *, aligned: bool = False) -> tuple[int, int]:
        ends = [at for at, cut in enumerate(self.cuts) if not aligned or cut % MIB2 == 0]
        first %= len(ends) - 1
        return ends[first], ends[first + 1 + count % (len(ends) - 1 - first)]

    def _page(self, cell: int, page: int) -> int:
        cell %= len(self.cuts) - 1
        start, end = self.cuts[cell], self.cuts[cell + 1]
        pages = (end - start) // PAGE
        return start + page % pages * PAGE

    def _finish_model(self) -> None:
        change = self.model.pending
        assert change is not None
        if change.verb in ("map", "unmap", "remove"):
            self.written = {at for at in self.written if not change.start <= at < change.end}
        self.model.finish()


def around(edges: Iterable[int], end: int) -> tuple[int, ...]:
    """Cut points next to table edges, and a few pages in a row to map together."""
    cuts = {0, PAGE, 2 * PAGE, 3 * PAGE, end}
    for edge in edges:
        cuts |= {edge - 2 * PAGE, edge - PAGE, edge, edge + PAGE}
    return tuple(sorted(cut for cut in cuts if 0 <= cut <= end))


class SmallRegion(Region):
    """Quantum 2 MiB: PTE pages come and go."""

    size, quantum = 4 * MIB2, MIB2
    cuts = around([MIB2, 2 * MIB2, 3 * MIB2], size)


class MiddleRegion(Region):
    """Quantum 1 GiB: edges of PMD pages."""

    size, quantum = 3 * GIB1, GIB1
    cuts = around([MIB2, GIB1, GIB1 + MIB2, 2 * GIB1], size)


class LargeRegion(Region):
    """Quantum 512 GiB: edges of all levels."""

    size, quantum = 2 * GIB512, GIB512
    cuts = around([MIB2, GIB1, GIB512 - GIB1, GIB512, GIB512 + MIB2], size)


class TopRegion(Region):
    """A region larger than a host mm: the last page there is."""

    size, quantum = 256 * GIB512, GIB512
    cuts = around([GIB512, 254 * GIB512, 255 * GIB512 - MIB2], lib.HOST_END - lib.HOST_BASE)


@pytest.mark.parametrize("region", [SmallRegion, MiddleRegion, LargeRegion, TopRegion])
def test_any_order_of_steps(region: type[Region]) -> None:
    run = region.TestCase()
    run.settings = settings(max_examples=60, stateful_step_count=40, phases=PHASES)
    run.runTest()
