"""The rules of random programs for verbs on a range that leave its mappings: advice, locks, looks.

Seals are not among them: what is sealed stays, so that there would soon be nothing left to change.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from msharefs import verbs
from msharefs.native import lib

from .shape import CONTENT, CUTS, LONGEST, Span, bytes_of, picks, single_pages, spans
from support.actor import PAGE
from support.calls import refused
from support.core import GUARD, LOCKED
from support.model import Kind, Model
from support.program import Foresight

if TYPE_CHECKING:
    from support.program import Program, Run

dropping = st.sampled_from(
    [verbs.MADV_DONTNEED, verbs.MADV_COLD, verbs.MADV_PAGEOUT, verbs.MADV_REMOVE]
)
keeping = st.sampled_from([
    verbs.MADV_NORMAL, verbs.MADV_RANDOM, verbs.MADV_SEQUENTIAL, verbs.MADV_WILLNEED,
    verbs.MADV_FREE, verbs.MADV_WIPEONFORK,
])  # fmt: skip
guarding = st.sampled_from([verbs.MADV_GUARD_INSTALL, verbs.MADV_GUARD_REMOVE])
populating = st.sampled_from([verbs.MADV_POPULATE_READ, verbs.MADV_POPULATE_WRITE])


class Verbs(RuleBasedStateMachine):
    """A region, its processes, and a model of it."""

    run: Run

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(CUTS)
        self.foresight = Foresight(self.model, CONTENT)
        self.programs: list[Program] = []
        self.unlinked: set[int] = set()  # pages whose entries have gone; others may have come

    @rule(advice=dropping, span=spans, by=picks)
    def advise(self, advice: int, span: Span, by: int) -> None:
        """Entries go, for all, and with REMOVE the contents."""
        free = [None, *self.programs]
        start, size = bytes_of(span)
        cells = self.model.cells[slice(*span)]
        locked = any(cell and cell.kept & LOCKED for cell in cells)
        with contextlib.ExitStack() as stack:
            if locked or not all(cells):
                stack.enter_context(refused(errno.EINVAL if locked else errno.ENOMEM))
            program = free[by % len(free)]
            if program is None:
                self.run.region.advise(start, size, advice)
            else:
                program.actor.call("advise", program.fd, start, size, advice)
        if locked or not all(cells):
            return
        assert self.run.twin.advise(start, size, advice) == 0
        if advice == verbs.MADV_REMOVE:
            self.foresight.zero(start, start + size)
        # A file stays mapped where its contents go.
        kinds = [cell.kind is Kind.FILE and advice == verbs.MADV_REMOVE for cell in cells if cell]
        at = span[0]
        for stays, run in itertools.groupby(kinds):
            end = at + len(list(run))
            if not stays:
                self._drop((at, end), pages_stay=advice != verbs.MADV_REMOVE)
            at = end

    def _drop(self, span: Span, *, pages_stay: bool) -> None:
        """The entries of a range go, and their pages or not."""
        start, size = bytes_of(span)
        of_range = {at for at in self.model.leaves if start <= at < start + size}
        if pages_stay:
            self.unlinked |= of_range - self.model.of_file
        else:
            self.unlinked = {at for at in self.unlinked if not start <= at < start + size}
        self.model.begin("drop", *span, 0)
        self.model.finish()

    def _advised(self, span: Span, advice: int, by: int) -> int:
        """The answer to advice of any process, or the test's; first Linux's to the same advice."""
        free = [None, *self.programs]
        program = free[by % len(free)]
        start, size = bytes_of(span)
        linux = self.run.twin.advise(start, size, advice)
        ours = 0
        try:
            if program is None:
                self.run.region.advise(start, size, advice)
            else:
                program.actor.call("advise", program.fd, start, size, advice)
        except OSError as error:
            ours = error.errno or 0
        assert ours == linux, f"advice {advice}"
        return ours

    @rule(advice=keeping, span=spans, by=picks)
    def keep(self, advice: int, span: Span, by: int) -> None:
        """Advice that stays with the mapping, or is nothing that one can see, or is not for it."""
        if self._advised(span, advice, by):
            return
        come = {verbs.MADV_RANDOM: lib.VMA_RANDOM, verbs.MADV_SEQUENTIAL: lib.VMA_SEQUENTIAL}
        if advice != verbs.MADV_WILLNEED:
            both = lib.VMA_RANDOM | lib.VMA_SEQUENTIAL
            self.model.flag(*span, both, come.get(advice, 0))

    @rule(advice=guarding, span=spans, by=picks)
    def guard(self, advice: int, span: Span, by: int) -> None:
        """A touch is a signal, for all, until the guard is removed; the data stay."""
        span = single_pages(span)
        cells = self.model.cells[slice(*span)]
        if any(cell and cell.kept & LOCKED for cell in cells):  # the twin is not locked
            return
        if self._advised(span, advice, by):
            return
        if advice == verbs.MADV_GUARD_INSTALL:
            self.model.flag(*span, 0, GUARD)
            self._drop(span, pages_stay=True)
        else:
            self.model.flag(*span, GUARD, 0)

    @rule(advice=populating, span=spans, by=picks)
    def populate(self, advice: int, span: Span, by: int) -> None:
        """All pages come, and their entries."""
        span = single_pages(span)
        cells = self.model.cells[slice(*span)]
        if any(cell and cell.kept & GUARD for cell in cells):
            return  # what there is before the guard may have been filled
        if not self._advised(span, advice, by):
            start, size = bytes_of(span)
            self.foresight.populate(range(start, start + size, PAGE))

    @rule(span=spans, prefer=st.booleans())
    def bind(self, span: Span, prefer: bool) -> None:
        """A policy is kept with the mapping; there is one node."""
        whole = all(self.model.cells[slice(*span)])
        with contextlib.nullcontext() if whole else refused(errno.ENOMEM):
            self.run.region.mbind(*bytes_of(span), 1 if prefer else 0, [0] if prefer else [])
        if whole:
            policy = lib.VMA_POLICY & -lib.VMA_POLICY
            self.model.flag(*span, lib.VMA_POLICY, policy if prefer else 0)

    @rule(span=spans, by=picks)
    def look_at_memory(self, span: Span, by: int) -> None:
        """Which of its pages are in memory; and all is written back, which shows nowhere."""
        span = single_pages(span)
        start, size = bytes_of(span)
        cells = self.model.cells[slice(*span)]
        if not all(cells):
            with refused(errno.ENOMEM):
                self.run.region.query(start, size)
            with refused(errno.ENOMEM):
                self.run.region.sync(start, size)
            return
        self.run.region.sync(start, size, [verbs.MS_SYNC, verbs.MS_ASYNC][by % 2])
        found = self.run.region.query(start, size)
        for at, byte in zip(range(start, start + size, PAGE), found, strict=True):
            cell = self.model.cell_of(at)
            if cell and cell.kind is Kind.ANONYMOUS:
                assert byte == (at in self.model.leaves or at in self.unlinked), hex(at)

    @rule(span=spans, unlock=st.booleans())
    def lock(self, span: Span, unlock: bool) -> None:
        """All pages come, and stay; not of the gigabyte that has no row of pages in it."""
        span = span[0], max(span[0] + 1, min(span[1], 1 + max(
            (cell for cell in range(*span) if CUTS[cell + 1] - CUTS[cell] == PAGE), default=0
        )))  # fmt: skip
        start, size = bytes_of(span)
        cells = self.model.cells[slice(*span)]
        if size > LONGEST * PAGE:
            return
        if unlock:
            with contextlib.nullcontext() if all(cells) else refused(errno.ENOMEM):
                self.run.region.unlock(start, size)
        elif all(cell and cell.prot and not cell.kept & GUARD for cell in cells):
            self.run.region.lock(start, size)
            self.foresight.populate(range(start, start + size, PAGE))
        else:
            with refused(errno.ENOMEM):
                self.run.region.lock(start, size)
            return
        if all(cells):
            self.model.flag(*span, LOCKED if unlock else 0, 0 if unlock else LOCKED)
