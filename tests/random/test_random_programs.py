"""Random programs: up to four processes map, unmap, advise, touch, fork and die; all is foreseen.

Each run has a region of its own on one mount. A model foresees the outcome of every access, by
whatever process, and what the region then is: VMAs, entries, table pages, counters. Where Linux's
own shared memory is no different, a process with such memory is asked the same.

The same 500 runs each time. For others, as long as one likes, until one fails:

    while .venv/bin/python -m pytest -q tests/random --hypothesis-seed=random; do :; done
"""

from __future__ import annotations

import errno
import itertools
import sys
from mmap import MAP_ANONYMOUS
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from .rules import Verbs
from .shape import BYTE, CELLS, CONTENT, CUTS, ROWS, SIZE, Span, bytes_of, parts, picks, spans
from support.actor import MAP_FIXED, MAP_FIXED_NOREPLACE, PAGE, READ_WRITE, Actor
from support.audit import assert_whole
from support.calls import refused
from support.core import EXEC, MIB2, READ, WRITE
from support.hostview import attachments, is_changing, number_of
from support.model import Kind
from support.program import FLAGS, Access, World, answer
from support.rawmm import HOST_BASE, P
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.program import Program
    from support.server import Mount

# Strict: an entry only for a page that somebody touched, so that faults can be foreseen.
pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")

RUNS, STEPS = 500, 20
PROGRAMS, WINDOWS = 4, 2
HALF = 8  # bytes of a system call in each of two pages
# Without "explain": it traces every line, and the failing steps speak for themselves.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

windows = st.sampled_from([READ_WRITE, READ_WRITE, READ])
verbs = st.sampled_from(["map", "map", "unmap", "protect", "protect"])
rights = st.sampled_from([READ | WRITE, READ | WRITE, READ, 0, WRITE, READ | EXEC])
# Whose window, which page, and how: a value is stored, 0 is a load.
touches = st.tuples(picks, st.integers(0, CELLS - 1), st.integers(0, 255))

Touch = tuple[int, int, int]


class Programs(Verbs):
    """One region and its processes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.links = self.unsure_links = 0  # of attachments that are gone

    @initialize(count=st.integers(2, PROGRAMS))
    def begin(self, count: int) -> None:
        self.run = self.world.run(SIZE, CONTENT)
        self._change("map", (0, CELLS), READ | WRITE, None)
        for _ in range(count):
            self.arrive(None, READ_WRITE)

    # Processes

    @rule(parent=st.none() | picks, prot=windows, part=parts)
    def arrive(self, parent: int | None, prot: int, part: Span | None = None) -> None:
        """One more process, a child of another or not; or a window at another address."""
        if len(self.programs) < PROGRAMS and (parent is None or not self.programs):
            program = self.run.fork()
            program.attach(prot, part)
            self.programs.append(program)
        elif len(self.programs) < PROGRAMS:
            self.programs.append(self._program(parent or 0).fork())
        else:
            program = self._program(parent or 0)
            if len(program.windows) < WINDOWS:
                program.attach(prot, part)

    @precondition(lambda self: self.programs)
    @rule(who=picks, how=st.sampled_from(["exit", "kill", "exec", "leave-main", "detach"]))
    def leave(self, who: int, how: str) -> None:
        """By and by a process goes; nobody waits until it is gone."""
        program = self._program(who)
        if how == "leave-main":
            # Only its first thread ends: to many it looks like a process that has. After an exec
            # several shadows take each other for what is left of it (docs/limits.md).
            until(lambda: self._listed(program) <= len(program.windows), "the exec was noticed")
            assert program.actor.call(how) == []
        elif how == "detach":
            for window in program.windows[:1]:
                assert program.actor.call(how, window.base + window.start) == []
                self._forget(program, 1)
        elif how == "exec":
            assert program.actor.call(how) == []
            self._forget(program, WINDOWS)
            program.fd = program.actor.give(self.run.region.fd)
        else:
            self._end(program, how)

    def _listed(self, program: Program) -> int:
        """How many attachments of it the server knows."""
        return sum(client["pid"] == program.actor.pid for client in self.run.region.clients())

    # Accesses

    @precondition(lambda self: self._attached())
    @rule(chosen=st.lists(touches, min_size=1, max_size=PROGRAMS))
    def touch(self, chosen: list[Touch]) -> None:
        """Loads and stores, those of different processes at the same time."""
        accesses = self._together(chosen)
        self._start(accesses)
        self._finish(accesses)

    @precondition(lambda self: self._attached())
    @rule(row=st.sampled_from(ROWS))
    def look(self, row: range) -> None:
        """All processes at once look at pages in a row."""
        looking = [
            (program, program.windows[-1])
            for program in self._attached()
            if program.windows[-1].has(row.start, row.stop)
        ]
        for program, window in looking:
            program.actor.start("look", window.base + row.start + BYTE, len(row))
        for program, window in looking:
            assert program.actor.finish() == self.foresight.look(window, row, BYTE)

    @precondition(lambda self: self._attached())
    @rule(who=picks, row=st.sampled_from(ROWS), backwards=st.booleans(), value=st.integers(1, 255))
    def fill(self, who: int, row: range, backwards: bool, value: int) -> None:
        """One process stores into all pages in a row."""
        program = self._program(who, attached=True)
        window = program.windows[-1]
        here = [offset for offset in row if window.has(offset, offset + PAGE)]
        for offset in reversed(here) if backwards else here:
            accesses = [(program, Access(window, offset + BYTE, True, 1, value))]
            self._start(accesses)
            self._finish(accesses)

    @precondition(lambda self: self._attached())
    @rule(who=picks, row=st.sampled_from(ROWS), page=st.integers(0, 2), write=st.booleans())
    def system_call(self, who: int, row: range, page: int, write: bool) -> None:
        """read(2) or write(2) of memory, half of it in one page and half in the next."""
        program = self._program(who, attached=True)
        offset = row[page + 1] - HALF
        if not program.windows[0].has(offset, offset + 2 * HALF):
            return
        accesses = [(program, Access(program.windows[0], offset, write, 2 * HALF))]
        self._start(accesses)
        self._finish(accesses)

    @precondition(lambda self: self._attached())
    @rule(touch=touches)
    def kill_in_an_access(self, touch: Touch) -> None:
        """It is made or it is not; what was half done another process completes."""
        found = self._together([touch])
        if not found:
            return
        [(program, access)] = found
        self._start([(program, access)])
        self._end(program, "kill")
        program.actor.gone()
        self.unsure_links += access.offset // MIB2 not in access.window.linked
        at = access.offset
        seeing = [
            (program, window)
            for program in self._attached()
            for window in program.windows
            if window.has(at, at + 1)
        ]
        if not seeing:
            self.arrive(None, READ)
            seeing = [(self.programs[-1], self.programs[-1].windows[-1])]
        witness, window = seeing[0]
        after = Access(window, at, write=False)
        said = after.perform(witness.actor)
        foreseen = self.foresight.expect(after, unsure=True)
        if access.write and access.window.prot & WRITE and said == [access.value] != foreseen:
            assert self.run.twin.perform(access) == []
            self.foresight.put([access.offset], access.value)
            foreseen = said
        assert said == foreseen == self.run.twin.perform(after)

    # Changes

    @rule(verb=verbs, span=spans, prot=rights, by=picks,
          what=st.sampled_from(["anonymous", "file", "new"]),
          meanwhile=st.lists(touches, max_size=PROGRAMS))  # fmt: skip
    def change(
        self, verb: str, span: Span, prot: int, by: int, what: str, meanwhile: list[Touch]
    ) -> None:
        """By any process; accesses elsewhere that go on meanwhile notice nothing of it."""
        cells = range(*span)
        chosen = [touch for touch in meanwhile if touch[1] not in cells]
        accesses = self._together(chosen)
        busy = [program for program, _ in accesses]
        free = [None, *(program for program in self.programs if program not in busy)]
        self._start(accesses)
        if verb == "map" and what == "file":
            self._map_file(span, prot)
        elif verb == "map" and what == "new":
            self._map_new(span, prot)
        else:
            self._change(verb, span, prot, free[by % len(free)])
        self._finish(accesses)

    @precondition(lambda self: self.programs)
    @rule(who=picks, verb=verbs, span=spans, prot=rights)
    def kill_in_a_change(self, who: int, verb: str, span: Span, prot: int) -> None:
        """All of it is done or nothing."""
        program = self._program(who)
        before = self._maps()
        program.actor.start(verb, program.fd, *bytes_of(span), prot)
        self._end(program, "kill")
        program.actor.gone()
        # The server has begun or not; it finishes without the one who asked for it.
        region = number_of(self.run.region.path)
        until(lambda: not is_changing(self.world.mount, region), "the change is over")
        found = self._found_maps()
        self._change(verb, span, prot, None)
        assert found in (before, self._maps())

    # What must be so in the end

    def teardown(self) -> None:
        with self.run:
            if sys.exception() is None:
                self._check()

    def _check(self) -> None:
        for row in ROWS:
            self.look(row)
        region = self.run.region
        count = sum(len(program.windows) for program in self.programs)
        until(lambda: region.stat()["clients"] == count, f"there are {count} attachments")
        stat = assert_whole(region)
        assert self._found_maps() == self._maps()
        pages = (self.model.leaves.keys() - self.model.of_file) | self.unlinked
        assert stat["rss_bytes"] == PAGE * len(pages)
        assert stat["page_table_bytes"] == PAGE * (1 + len(self.model.tables))
        self._check_entries()
        self._check_counters(stat["counters"])
        region.unmap(0, SIZE)
        stat = assert_whole(region)
        assert (stat["rss_bytes"], stat["page_table_bytes"]) == (0, PAGE)

    def _check_entries(self) -> None:
        """Exactly those of the pages touched; of a file's pages, some others near them too."""
        found = self._found_entries()
        touched = [at & -MIB2 for at, bits in self.model.leaves.items() if bits & P]
        assert found.keys() == {start for level, start in self.model.tables if level == 0}
        for start, count in found.items():
            least = touched.count(start)
            assert least <= count <= least + self._file_pages(start, start + MIB2)

    def _check_counters(self, counters: dict[str, int]) -> None:
        most = self.foresight.faults
        assert most - self.foresight.unsure <= counters["faults"] <= most
        clients = attachments(self.world.mount, number_of(self.run.region.path))
        assert sorted((client.pid, client.links) for client in clients) == sorted(
            (program.actor.pid, len(window.linked))
            for program in self.programs
            for window in program.windows
        )
        gone = counters["links"] - sum(client.links for client in clients)
        assert self.links <= gone <= self.links + self.unsure_links

    # What the rules share

    def _attached(self) -> list[Program]:
        return [program for program in self.programs if program.windows]

    def _program(self, number: int, *, attached: bool = False) -> Program:
        programs = self._attached() if attached else self.programs
        return programs[number % len(programs)]

    def _end(self, program: Program, how: str) -> None:
        if how == "kill":
            program.actor.kill()
        else:
            program.actor.start("exit", 0)
        self._forget(program, WINDOWS)
        self.programs.remove(program)

    def _forget(self, program: Program, count: int) -> None:
        """Its first windows are gone."""
        self.links += sum(len(window.linked) for window in program.windows[:count])
        del program.windows[:count]

    def _together(self, chosen: list[Touch]) -> list[tuple[Program, Access]]:
        """Of the chosen accesses one for each process, such that their order does not matter."""
        found: list[tuple[Program, Access]] = []
        for who, cell, value in chosen if self._attached() else ():
            program = self._program(who, attached=True)
            window = program.windows[who // PROGRAMS % len(program.windows)]
            access = Access(window, CUTS[cell] + BYTE, write=value > 0, value=value)
            if window.has(access.offset, access.offset + 1) and not any(
                other is program or ((access.write or more.write) and more.offset == access.offset)
                for other, more in found
            ):
                found.append((program, access))
        return found

    def _start(self, accesses: list[tuple[Program, Access]]) -> None:
        for program, access in accesses:
            access.start(program.actor)

    def _finish(self, accesses: list[tuple[Program, Access]]) -> None:
        for program, access in accesses:
            said = answer(program.actor)
            foreseen = self.foresight.expect(access)
            if not access.write or access.window.prot & WRITE:
                assert foreseen == self.run.twin.perform(access), "the model is wrong"
            assert said == foreseen

    def _map_new(self, span: Span, prot: int) -> None:
        """MAP_FIXED_NOREPLACE."""
        flags = FLAGS & ~MAP_FIXED | MAP_FIXED | MAP_FIXED_NOREPLACE
        if any(self.model.cells[slice(*span)]):
            with refused(errno.EEXIST):
                self.run.region.map(*bytes_of(span), prot, flags)
        else:
            self.run.region.map(*bytes_of(span), prot, flags)
            self._changed("map", span, prot)

    def _map_file(self, span: Span, prot: int) -> None:
        start, size = bytes_of(span)
        flags = FLAGS & ~MAP_ANONYMOUS
        self.run.region.map(start, size, prot, flags, self.run.file, start)
        self._changed("map", span, prot, Kind.FILE)

    def _change(self, verb: str, span: Span, prot: int, by: Program | None) -> None:
        """Made by that process, or by the test's."""
        arguments = bytes_of(span) if verb == "unmap" else (*bytes_of(span), prot)

        def made() -> Any:
            if by is None:
                return getattr(self.run.region, verb)(*arguments)
            return by.actor.call(verb, by.fd, *arguments)

        if verb == "protect" and not all(self.model.cells[slice(*span)]):
            with refused(errno.ENOMEM):
                made()
        else:
            made()
            self._changed(verb, span, prot)

    def _changed(self, verb: str, span: Span, prot: int, kind: Kind = Kind.ANONYMOUS) -> None:
        start, size = bytes_of(span)
        self.run.twin.change(verb, start, size, prot, kind)
        self.model.begin(verb, *span, prot, kind)
        self.model.finish()
        if verb != "protect":
            self.foresight.drop(start, start + size)
            self.unlinked = {at for at in self.unlinked if not start <= at < start + size}

    # The region: what it should be, and what it is

    def _maps(self) -> list[tuple[int, int, str]]:
        letters = ((READ, "r"), (WRITE, "w"), (EXEC, "x"))
        return [
            (
                vma.start,
                vma.end,
                "".join(letter if vma.flags & bit else "-" for bit, letter in letters) + "s",
            )
            for vma in self.model.vmas()
        ]

    def _found_maps(self) -> list[tuple[int, int, str]]:
        return [(vma["start"], vma["end"], vma["prot"]) for vma in self.run.region.maps()]

    def _file_pages(self, start: int, end: int) -> int:
        """How many of a file may be accessible there."""
        cells = zip(self.model.cells, itertools.pairwise(CUTS), strict=True)
        return sum(
            max(0, min(high, end) - max(low, start)) // PAGE
            for cell, (low, high) in cells
            if cell and cell.kind is Kind.FILE and cell.prot
        )

    def _found_entries(self) -> dict[int, int]:
        """How many entries are present in the PTE page of each span."""
        [pages] = (
            level["tables"]
            for level in self.run.region.describe("pagetable")["levels"]
            if level["level"] == "pte"
        )
        return {table["start"] - HOST_BASE: table["present"] for table in pages}


@pytest.fixture
def world(shared_mount: Mount, actor_program: Path) -> Iterator[World]:
    with Actor.launch(actor_program) as zygote:
        yield World(shared_mount, zygote)


# When it fails it looks for a shorter program, for five minutes at most.
@pytest.mark.timeout(500)
@pytest.mark.slow
def test_random_programs(world: World, request: pytest.FixtureRequest) -> None:
    seed_given = request.config.getoption("--hypothesis-seed") is not None
    run_state_machine_as_test(
        lambda: Programs(world),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            derandomize=not seed_given,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
