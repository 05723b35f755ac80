"""Random whole programs, plain and adopted: every answer of every call is the same.

Each step is made twice, by a process with Linux's own shared memory and by one whose memory is
adopted: shared memory is mapped, used, advised, cut up and moved, by processes that fork, exec,
start threads, are stopped and read from outside, limit themselves, close all descriptors, and give
themselves filters. Nobody foresees an answer: Linux's own process says what it is.

The same 40 programs each time. For more: MSHAREFS_WHOLE_PROGRAMS=2000; for others:
--hypothesis-seed=random.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from contextlib import contextmanager
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msharefs.launch import running

from support import agent as agents_of
from support import libc
from support.agent import Agents
from support.proc import state
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.agent import Agent, Argument
    from support.server import Mount

T = TypeVar("T")

PROGRAMS = int(os.environ.get("MSHAREFS_WHOLE_PROGRAMS", "40"))
STEPS = 25
PROCESSES, MEMORIES = 4, 5
PAGE = 4096
SPAN = 2 << 20
SIZES = (64 << 10, 256 << 10, SPAN, SPAN + 3 * PAGE + 1, 3 * SPAN)
READ_WRITE, READ, NONE = 3, 1, 0
FIXED, NORESERVE, POPULATE = 0x10, 0x4000, 0x8000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
PLACE, GIB = 1 << 45, 1 << 30

ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": MADV_DONTNEED, "FREE": 8,
    "REMOVE": 9, "DONTFORK": 10, "DOFORK": 11, "MERGEABLE": 12, "HUGEPAGE": 14, "NOHUGEPAGE": 15,
    "DONTDUMP": 16, "DODUMP": 17, "WIPEONFORK": 18, "KEEPONFORK": 19, "COLD": 20, "PAGEOUT": 21,
    "POPULATE_READ": 22, "POPULATE_WRITE": 23, "DONTNEED_LOCKED": 24, "GUARD_INSTALL": 102,
    "GUARD_REMOVE": 103, "none": 77,
}  # fmt: skip
RLIMITS = {"FSIZE": (1, 4096), "CORE": (4, 0), "NOFILE": (7, 20), "MEMLOCK": (8, 64 << 10)}
FUTEX_WAKE, MPOL_BIND, SYS = 1, 2, {"futex": 202, "mlock2": 325, "process_madvise": 440}
PR_NO_NEW_PRIVS, PR_SECCOMP, SECCOMP_FILTER, SYS_GETPPID = 38, 22, 2, 110

picks = st.integers(0, 1 << 10)
pages = st.integers(0, 1 << 10)
lengths = st.sampled_from([1, 2, 3, 17, 300, 512, 2000])


class Process:
    """The same process twice."""

    def __init__(self, plain: Agent, adopted: Agent) -> None:
        self.both = (plain, adopted)

    def same(self, ask: Callable[[Agent], T]) -> T:
        """What both answer."""
        plain, adopted = (ask(agent) for agent in self.both)
        assert plain == adopted, f"plain {plain}, adopted {adopted}"
        return plain

    def call(self, function: str, *arguments: Argument) -> str:
        """Calls a C function in both: its errno by name, or "0"."""
        result, error = self.same(lambda agent: agent.result(function, *arguments))
        return error if result == -1 else "0"


class Memory:
    """It is at the same address in both."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.pages = -(-size // PAGE)

    def at(self, page: int) -> int:
        return self.base + page % self.pages * PAGE


class World:
    def __init__(self, agents: Agents, program: Path, mount: Mount) -> None:
        self.agents, self.program, self.mount = agents, program, mount

    def start(self) -> Process:
        return Process(
            self.agents.start([self.program]),
            self.agents.start([self.program], running.environment(self.mount.path, 64 << 10)),
        )


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    pids = [agent.pid for agent in process.both]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        until(lambda pid=pid: state(Path(f"/proc/{pid}")) == "T", "it is stopped")
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def peek(pid: int, address: int) -> tuple[str, str]:
    """What a debugger reads: by process_vm_readv(2), and in /proc/PID/mem."""

    def by_file() -> bytes:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), 8, address)

    def answer(read: Callable[[], bytes]) -> str:
        try:
            return read().hex()
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    return answer(lambda: libc.vm_read(pid, address, 8)), answer(by_file)


class Whole(RuleBasedStateMachine):
    """A family of processes, and a family beside it that does the same with adopted memory."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.processes: list[Process] = []
        self.memories: list[list[Memory]] = []
        self.places = 0

    @initialize()
    def begin(self) -> None:
        self.processes = [self.world.start()]
        self.memories = [[]]
        self.map(0, 2, NORESERVE, READ_WRITE, 0)

    def _process(self, who: int) -> tuple[Process, list[Memory]]:
        at = who % len(self.processes)
        return self.processes[at], self.memories[at]

    def _some(self, who: int) -> tuple[Process, Memory] | None:
        process, memories = self._process(who)
        return (process, memories[who // PROCESSES % len(memories)]) if memories else None

    # Memory

    @rule(
        who=picks, size=st.integers(0, len(SIZES) - 1),
        flags=st.sampled_from([0, 0, NORESERVE, POPULATE]),
        prot=st.sampled_from([READ_WRITE, READ_WRITE, READ, NONE]),
        offset=st.sampled_from([0, 0, 0, 123, PAGE]),
    )  # fmt: skip
    def map(self, who: int, size: int, flags: int, prot: int, offset: int) -> None:
        process, memories = self._process(who)
        if len(memories) == MEMORIES:
            return
        base = self._place()
        flags |= MAP_SHARED | MAP_ANONYMOUS
        if process.call("mmap", base, SIZES[size], prot, flags, -1, offset) == "0":
            memories.append(Memory(base, SIZES[size]))

    def _place(self) -> int:
        """Where nothing is, and nothing was: otherwise an old address could lead to new memory."""
        self.places += 1
        return PLACE + self.places * (GIB + PAGE)

    @rule(who=picks, page=pages, byte=st.integers(0, 255), thread=st.booleans())
    def touch(self, who: int, page: int, byte: int, *, thread: bool) -> None:
        """A store, or with 0 a load."""
        if some := self._some(who):
            process, memory = some
            at = memory.at(page) + 7

            def touch(agent: Agent) -> str:
                worker = agent.thread() if thread else agent
                said = worker.store(at, byte) if byte else worker.load(at)
                if thread:
                    worker.tell("leave")
                return said

            process.same(touch)

    @rule(who=picks, page=pages, count=lengths, advice=st.sampled_from(sorted(ADVICE)))
    def advise(self, who: int, page: int, count: int, advice: str) -> None:
        if some := self._some(who):
            process, memory = some
            process.call("madvise", memory.at(page), count * PAGE, ADVICE[advice])

    @rule(
        who=picks, page=pages, count=lengths,
        how=st.sampled_from(["munmap", "mprotect", "mlock", "munlock", "msync", "mlock2", "mbind"]),
        more=st.sampled_from([0, 1, 3, 4]),
    )  # fmt: skip
    def change(self, who: int, page: int, count: int, how: str, more: int) -> None:
        if some := self._some(who):
            process, memory = some
            at = memory.at(page)
            size = min(count, memory.pages - page % memory.pages) * PAGE
            if how in SYS:
                process.call("syscall", SYS[how], at, size, more & 1)
            elif how == "mbind":
                process.call("syscall", 237, at, size, MPOL_BIND, struct.pack("=Q", 1), 64, 0)
            elif how in ("mprotect", "msync"):
                process.call(how, at, size, more)
            else:
                process.call(how, at, size)

    @rule(who=picks, page=pages, count=lengths)
    def cover(self, who: int, page: int, count: int) -> None:
        """Private memory over a part."""
        if some := self._some(who):
            process, memory = some
            size = min(count, memory.pages - page % memory.pages) * PAGE
            flags = MAP_PRIVATE | MAP_ANONYMOUS | FIXED
            process.call("mmap", memory.at(page), size, READ_WRITE, flags, -1, 0)

    @rule(who=picks, old=lengths, new=lengths)
    def move(self, who: int, old: int, new: int) -> None:
        """mremap(2) of the beginning, to a place of its own."""
        if some := self._some(who):
            process, memory = some
            sizes = min(old, memory.pages) * PAGE, new * PAGE
            place = self._place()
            how = MREMAP_MAYMOVE | MREMAP_FIXED
            moved = process.call("mremap", memory.base, *sizes, how, place) == "0"
            _, memories = self._process(who)
            if moved and len(memories) < MEMORIES:
                memories.append(Memory(place, new * PAGE))

    @rule(who=picks, page=pages, count=st.sampled_from([1, 5, 40]))
    def look(self, who: int, page: int, count: int) -> None:
        """read(2) and write(2) of it, mincore(2), futex(2)."""
        if some := self._some(who):
            process, memory = some
            at = memory.at(page)

            def look(agent: Agent) -> list[object]:
                file = agent.call("memfd_create", "x", 0)
                agent.call("ftruncate", file, 100)
                here = agent.result("mincore", at, count * PAGE, agent.pool)
                said = [
                    agent.result("pwrite", file, at + PAGE - 4, 8, 0),
                    agent.result("pread", file, at + PAGE - 4, 8, 0),
                    here,
                    [byte & 1 for byte in agent.get(agent.pool, count)] if not here[0] else [],
                    agent.result("syscall", SYS["futex"], at, FUTEX_WAKE, 1, 0, 0, 0),
                ]
                agent.call("close", file)
                return said

            process.same(look)

    # Processes

    @precondition(lambda self: len(self.processes) < PROCESSES)
    @rule(who=picks)
    def fork(self, who: int) -> None:
        process, memories = self._process(who)
        child = Process(*(agent.fork() for agent in process.both))
        self.processes.append(child)
        self.memories.append(list(memories))

    @rule(who=picks, page=pages)
    def vfork(self, who: int, page: int) -> None:
        if some := self._some(who):
            process, memory = some
            process.same(lambda agent: agent.ask("vfork", memory.at(page) + 3, 5))

    @precondition(lambda self: len(self.processes) > 1)
    @rule(who=picks, how=st.sampled_from(["exit", "kill"]))
    def end(self, who: int, how: str) -> None:
        at = who % len(self.processes)
        for agent in self.processes.pop(at).both:
            agent.exit(by=how)
        del self.memories[at]

    @rule(who=picks)
    def exec(self, who: int) -> None:
        process, memories = self._process(who)
        process.both = (process.both[0].exec(), process.both[1].exec())
        memories.clear()

    @rule(who=picks, page=pages, far=pages)
    def read_from_outside(self, who: int, page: int, far: int) -> None:
        """While it is stopped: pages of it that it may have touched or not."""
        if some := self._some(who):
            process, memory = some
            with stopped(process):
                for each in (page, far):
                    at = memory.at(each)
                    process.same(lambda agent, at=at: peek(agent.pid, at))

    # What a process does to itself

    @rule(who=picks, name=st.sampled_from(sorted(RLIMITS)))
    def limit(self, who: int, name: str) -> None:
        process, _ = self._process(who)
        number, value = RLIMITS[name]
        process.call("setrlimit", number, struct.pack("=QQ", value, value))

    @rule(who=picks)
    def close_all(self, who: int) -> None:
        """But the agent's own."""
        process, _ = self._process(who)
        process.call("close_range", 100, 0xFFFFFFFF, 0)

    @rule(who=picks)
    def filter(self, who: int) -> None:
        """From now on getppid(2) is EPERM. Memory mapped later stays plain, and says so."""
        process, _ = self._process(who)
        process.call("prctl", PR_NO_NEW_PRIVS, 1, 0, 0, 0)
        code = b"".join(
            struct.pack("=HBBI", *step)
            for step in [(0x20, 0, 0, 0), (0x15, 0, 1, SYS_GETPPID), (6, 0, 0, 0x50001),
                         (6, 0, 0, 0x7FFF0000)]
        )  # fmt: skip

        def install(agent: Agent) -> tuple[str, str]:
            agent.put(agent.pool, code)
            agent.put(agent.pool + 64, struct.pack("=HxxxxxxQ", 4, agent.pool))
            said = agent.say("prctl", PR_SECCOMP, SECCOMP_FILTER, agent.pool + 64)
            return said, agent.say("syscall", SYS_GETPPID)

        process.same(install)

    def teardown(self) -> None:
        self.world.agents.clean()


@pytest.fixture
def world(tmp_path: Path, shared_mount: Mount) -> Iterator[World]:
    with Agents() as agents:
        yield World(agents, agents_of.build(tmp_path / "agent"), shared_mount)


# When it fails it looks for a shorter program.
@pytest.mark.timeout(500 + PROGRAMS)
@pytest.mark.mount("quantum=2M")
def test_every_answer_is_that_of_linux(world: World, request: pytest.FixtureRequest) -> None:
    seed_given = request.config.getoption("--hypothesis-seed") is not None
    run_state_machine_as_test(
        lambda: Whole(world),
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=STEPS,
            derandomize=not seed_given,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
