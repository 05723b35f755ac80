"""Random programs that make ordinary calls on their windows, in each mode of -o window=.

Two to four processes under the preload library protect, unmap, map over, advise, touch and fork;
meanwhile the region is changed by its own verbs. A model of some 60 lines foresees each answer and
each access: `refuse` changes nothing, `inner` changes the region, `private` the process alone.

The same runs each time, few of each mode. For more, and others:

    MSHAREFS_WINDOW_PROGRAMS=300 .venv/bin/python -m pytest -q tests/random/test_window_programs.py
    ... --hypothesis-seed=random
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import msharefs
from msharefs.launch import running
from msharefs.verbs import MADV_COLD, MADV_DONTNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE

from support import agent as agents_of
from support.agent import Agents
from support.audit import assert_whole
from support.core import MIB2, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.agent import Agent
    from support.server import Mount

RUNS = int(os.environ.get("MSHAREFS_WINDOW_PROGRAMS", "15"))
STEPS = 20
PROCESSES = 4
PAGE = 4096
PLACE = 1 << 45
SIZE = 3 * MIB2
SHARED, PRIVATE, FIXED, ANONYMOUS = 1, 2, 0x10, 0x20
READ_WRITE = READ | WRITE
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

# The ends of two spans: few pages, so that calls meet; the gaps between them are cells, too.
CUTS = tuple(
    sorted({
        *range(0, 4 * PAGE, PAGE), *range(MIB2 - 3 * PAGE, MIB2 + 4 * PAGE, PAGE),
        *range(SIZE - 2 * PAGE, SIZE + 1, PAGE),
    })
)  # fmt: skip
CELLS = len(CUTS) - 1
CONTENT = {cut: 100 + number for number, cut in enumerate(CUTS[:-1])}
"""Of the file: the first byte of each cell."""

spans = st.tuples(st.integers(0, CELLS - 1), st.integers(1, 5)).map(
    lambda span: (span[0], min(sum(span), CELLS))
)
picks = st.integers(0, 1 << 12)
rights = st.sampled_from([READ_WRITE, READ_WRITE, READ, 0])
advices = st.sampled_from([MADV_DONTNEED, MADV_COLD, MADV_POPULATE_READ, MADV_POPULATE_WRITE])

Span = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """What the region has in a cell."""

    prot: int
    file: bool = False
    sealed: bool = False


@dataclass
class Own:
    """What a process has made of a cell for itself: rights; nothing; or memory of its own."""

    prot: int = READ_WRITE
    gone: bool = False
    memory: list[int] | None = None
    """Its first byte; children of fork(2) have the same list, if it is shared."""
    shared: bool = False


@dataclass
class Process:
    """An agent with the region at PLACE."""

    agent: Agent
    own: dict[int, Own] = field(default_factory=dict)


class Windows(RuleBasedStateMachine):
    """One region and its processes, in one mode."""

    def __init__(self, mode: str, home: Agent, path: Path, file: int) -> None:
        super().__init__()
        self.mode, self.home, self.path, self.file = mode, home, path, file
        self.cells: list[Cell | None] = [None] * CELLS
        self.bytes: dict[int, int] = {}
        self.of_file = {cell: CONTENT[CUTS[cell]] for cell in range(CELLS)}
        self.processes: list[Process] = []

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        os.ftruncate(self.file, 0)
        os.ftruncate(self.file, SIZE)
        for cut, byte in CONTENT.items():
            os.pwrite(self.file, bytes([byte]), cut)
        self.region = msharefs.open(self.path, os.O_RDWR | os.O_CREAT)
        self.region.truncate(SIZE)
        self._map((0, CELLS), READ_WRITE)
        first = Process(self.home.fork())
        fd = first.agent.call("open", str(self.path), os.O_RDWR)
        assert first.agent.call("mmap", PLACE, SIZE, READ_WRITE, SHARED | FIXED, fd, 0) == PLACE
        self.processes.append(first)
        for _ in range(count):
            self.fork(0)

    # Processes

    @rule(who=picks)
    def fork(self, who: int) -> None:
        if len(self.processes) < PROCESSES:
            mother = self._process(who)
            child = Process(mother.agent.fork())
            for cell, own in mother.own.items():
                copied = own.memory if own.shared or own.memory is None else [*own.memory]
                child.own[cell] = replace(own, memory=copied)
            self.processes.append(child)

    @rule(who=picks)
    def leave(self, who: int) -> None:
        if len(self.processes) > 1:
            process = self._process(who)
            _end(process)
            self.processes.remove(process)

    # Accesses

    @rule(who=picks, cell=st.integers(0, CELLS - 1), byte=st.integers(1, 255))
    def store(self, who: int, cell: int, byte: int) -> None:
        process = self._process(who)
        foreseen = self._access(process, cell, WRITE)
        assert process.agent.store(PLACE + CUTS[cell], byte) == (foreseen or "ok")
        own = process.own.get(cell)
        if own and own.memory is not None and not foreseen:
            own.memory[0] = byte
        elif not foreseen:
            self._contents(cell)[cell] = byte

    @rule(span=spans)
    def look(self, span: Span) -> None:
        """Each process loads."""
        for process, cell in itertools.product(self.processes, range(*span)):
            found = process.agent.load(PLACE + CUTS[cell])
            assert found == (self._access(process, cell, READ) or str(self._byte(process, cell)))

    # Ordinary calls

    @rule(who=picks, span=spans, prot=rights)
    def protect(self, who: int, span: Span, prot: int) -> None:
        process = self._process(who)
        said = self._call(process, "mprotect", span, prot)
        if self.mode == "refuse":
            assert said == "EINVAL" or (said == "0" and self._all_own(process, span))
        elif self.mode == "inner":
            assert said == self._verb(span)
            if said == "0":
                self._set(span, prot=prot)
        else:
            foreseen = self._ready(process, span, prot)
            holes = [cell for cell in range(*span) if self._is_gone(process, cell)]
            assert said == ("ENOMEM" if foreseen == "0" and holes else foreseen)
            if foreseen == "0":  # as on Linux, up to where the process has unmapped something
                for cell in range(span[0], min([*holes, span[1]])):
                    process.own.setdefault(cell, Own()).prot = prot

    @rule(who=picks, span=spans)
    def unmap(self, who: int, span: Span) -> None:
        if span == (0, CELLS):
            return
        process = self._process(who)
        said = self._call(process, "munmap", span)
        if self.mode == "refuse":
            assert said == "EINVAL"
        elif self.mode == "inner":
            assert said == ("EPERM" if self._sealed(span) else "0")
            if said == "0":
                self._forget(span)
        else:
            assert said == ("EPERM" if self._sealed_for(process, span) else "0")
            if said == "0":
                process.own.update({cell: Own(gone=True) for cell in range(*span)})

    @rule(who=picks, span=spans, prot=rights, kind=st.sampled_from([SHARED, PRIVATE]))
    def map_over(self, who: int, span: Span, prot: int, kind: int) -> None:
        """Memory of the process's own; with `inner`, of the region."""
        process = self._process(who)
        said = self._call(process, "mmap", span, prot, kind | FIXED | ANONYMOUS, -1, 0)
        if self.mode == "refuse" or (self.mode == "inner" and kind == PRIVATE):
            assert said == "EINVAL"
        elif self.mode == "inner":
            assert said == ("EPERM" if self._sealed(span) else "0")
            if said == "0":
                self._forget(span)
                self.cells[slice(*span)] = [Cell(prot)] * (span[1] - span[0])
        else:
            assert said == ("EPERM" if self._sealed_for(process, span) else "0")
            if said == "0":
                shared = kind == SHARED
                process.own.update(
                    {cell: Own(prot, gone=True, memory=[0], shared=shared) for cell in range(*span)}
                )

    @rule(who=picks, span=spans, advice=advices)
    def advise(self, who: int, span: Span, advice: int) -> None:
        process = self._process(who)
        said = self._call(process, "madvise", span, advice)
        populates = advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
        if self.mode == "refuse":
            assert said in ("0", "EFAULT") if populates else said == "0"
            return
        if self.mode == "inner":
            refusals = set() if all(self.cells[slice(*span)]) else {"ENOMEM"}
            if populates and not self._permitted(span, advice):
                refusals.add("EINVAL")
            assert said in (refusals or {"0"})  # one of two, whichever comes first
            return
        foreseen = self._ready(process, span, None)
        if populates and foreseen == "0":
            needed = READ if advice == MADV_POPULATE_READ else WRITE
            if any(self._access(process, cell, needed) for cell in range(*span)):
                foreseen = "EINVAL"
        if not any(self._is_gone(process, cell) for cell in range(*span)):
            assert said == foreseen
        if advice == MADV_DONTNEED and foreseen == "0":
            for cell in range(*span):
                own = process.own.get(cell)
                if own is not None and own.memory is not None and not own.shared:
                    own.memory[0] = 0

    # The region's own verbs

    @rule(span=spans, prot=rights, file=st.booleans())
    def verb_map(self, span: Span, prot: int, *, file: bool) -> None:
        if not self._sealed(span):
            self._map(span, prot, file=file)

    @rule(span=spans)
    def verb_unmap(self, span: Span) -> None:
        if not self._sealed(span):
            self.region.unmap(*_range(span))
            self._forget(span)

    @rule(span=spans, prot=rights)
    def verb_protect(self, span: Span, prot: int) -> None:
        if all(self.cells[slice(*span)]) and not self._sealed(span):
            self.region.protect(*_range(span), prot)
            self._set(span, prot=prot)

    @rule(cell=st.integers(0, CELLS - 1), really=st.integers(0, 5))
    def verb_seal(self, cell: int, really: int) -> None:
        if self.cells[cell] is not None and not really and CUTS[cell] % MIB2 == 0:
            self.region.seal(CUTS[cell], PAGE)
            self._set((cell, cell + 1), sealed=True)

    # What must be so in the end

    def teardown(self) -> None:
        try:
            if self.processes:
                self._check()
        finally:
            for process in self.processes:
                _end(process)
            if self.processes:
                self.region.close()
                os.unlink(self.path)

    def _check(self) -> None:
        self.look((0, CELLS))
        assert_whole(self.region)
        tables = {one["pid"]: one["unshared_tables"] for one in self.region.clients()}
        for process in self.processes:
            least = self._least_tables(process)
            assert least <= tables.get(process.agent.pid, 0) <= (SIZE // MIB2 if process.own else 3)
            if self.mode != "private":
                assert tables[process.agent.pid] == 0

    def _least_tables(self, process: Process) -> int:
        """Spans in which the process has rights of its own."""
        return len({
            CUTS[cell] // MIB2 for cell, own in process.own.items() if not own.gone
        })  # fmt: skip

    # What is foreseen

    def _access(self, process: Process, cell: int, needed: int) -> str:
        """The signal of an access; empty: there is none."""
        own, mapped = process.own.get(cell), self.cells[cell]
        if own and own.gone:
            if own.memory is None:
                return "SIGSEGV MAPERR"
            prot = own.prot
        elif mapped is None:
            return "SIGSEGV MAPERR"
        elif own and mapped.file:
            prot = own.prot & mapped.prot
        else:
            prot = own.prot if own else mapped.prot
        return "" if prot & needed or (needed == READ and prot) else "SIGSEGV ACCERR"

    def _byte(self, process: Process, cell: int) -> int:
        own = process.own.get(cell)
        if own and own.memory is not None:
            return own.memory[0]
        return self._contents(cell).get(cell, 0)

    def _contents(self, cell: int) -> dict[int, int]:
        mapped = self.cells[cell]
        return self.of_file if mapped and mapped.file else self.bytes

    def _verb(self, span: Span) -> str:
        """The answer of the region to a change of rights."""
        if not all(self.cells[slice(*span)]):
            return "ENOMEM"
        return "EPERM" if self._sealed(span) else "0"

    def _ready(self, process: Process, span: Span, prot: int | None) -> str:
        """Whether a process may change what it has of the window; otherwise nothing changes."""
        mine = [
            cell for cell in range(*span) if cell not in process.own or not process.own[cell].gone
        ]
        if any(self.cells[cell] is None for cell in mine):
            return "ENOMEM"
        for cell in mine:
            mapped = self.cells[cell]
            if prot is None or mapped is None:
                continue
            if mapped.file and prot & ~(mapped.prot | (READ if mapped.prot else 0)):
                return "EACCES"
            if mapped.sealed:
                return "EPERM"
        return "0"

    def _permitted(self, span: Span, advice: int) -> bool:
        needed = READ_WRITE if advice == MADV_POPULATE_READ else WRITE
        return all(cell is None or cell.prot & needed for cell in self.cells[slice(*span)])

    def _is_gone(self, process: Process, cell: int) -> bool:
        own = process.own.get(cell)
        return own is not None and own.gone and own.memory is None

    def _is_own_memory(self, process: Process, cell: int) -> bool:
        own = process.own.get(cell)
        return own is not None and own.memory is not None

    def _all_own(self, process: Process, span: Span) -> bool:
        return all(self._is_own_memory(process, cell) for cell in range(*span))

    def _sealed(self, span: Span) -> bool:
        return any(cell and cell.sealed for cell in self.cells[slice(*span)])

    def _sealed_for(self, process: Process, span: Span) -> bool:
        return any(
            (mapped := self.cells[cell]) is not None
            and mapped.sealed
            and not (cell in process.own and process.own[cell].gone)
            for cell in range(*span)
        )

    # What is done

    def _process(self, who: int) -> Process:
        return self.processes[who % len(self.processes)]

    def _call(self, process: Process, name: str, span: Span, *arguments: int) -> str:
        offset, size = _range(span)
        return process.agent.say(name, PLACE + offset, size, *arguments)

    def _map(self, span: Span, prot: int, *, file: bool = False) -> None:
        offset, size = _range(span)
        flags = SHARED | FIXED | (0 if file else ANONYMOUS)
        self.region.map(offset, size, prot, flags, self.file if file else -1, offset if file else 0)
        self._forget(span)
        self.cells[slice(*span)] = [Cell(prot, file)] * (span[1] - span[0])

    def _forget(self, span: Span) -> None:
        self.cells[slice(*span)] = [None] * (span[1] - span[0])
        for cell in range(*span):
            self.bytes.pop(cell, None)

    def _set(self, span: Span, **changes: int) -> None:
        self.cells[slice(*span)] = [
            cell and replace(cell, **changes)  # type: ignore[arg-type]
            for cell in self.cells[slice(*span)]
        ]


def _end(process: Process) -> None:
    process.agent.exit()
    process.agent.close()


def _range(span: Span) -> tuple[int, int]:
    """Region offset and size."""
    return CUTS[span[0]], CUTS[span[1]] - CUTS[span[0]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agents_of.build(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture
def file() -> Iterator[int]:
    made = os.memfd_create("object")
    yield made
    os.close(made)


@pytest.mark.timeout(500)  # when it fails it looks for a shorter program
@pytest.mark.parametrize("mode", ["refuse", "inner", "private"])
def test_window_programs(
    mode: str,
    mounts: Callable[..., Mount],
    program: Path,
    file: int,
    request: pytest.FixtureRequest,
) -> None:
    mount = mounts("quantum=2M", f"window={mode}", limit=480.0)
    names = itertools.count()
    with Agents() as agents:
        home = agents.start([program], running.environment(mount.path, None))
        run_state_machine_as_test(
            lambda: Windows(mode, home, mount.path / f"run{next(names)}", file),
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=STEPS,
                derandomize=request.config.getoption("--hypothesis-seed") is None,
                deadline=None,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )
