"""Adopted anonymous shared memory behaves as if it were not adopted: each test runs on both."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from msharefs import mountpoint, proc
from msharefs.lab import sampling
from msharefs.launch import running
from msharefs.server import describe
from msharefs.server.view import View

from .conftest import (
    ANONYMOUS,
    EXEC,
    FAILED,
    FIXED,
    MAYMOVE,
    MREMAP_FIXED,
    NOREPLACE,
    PAGE,
    PLACE,
    PRIVATE,
    QUANTUM,
    READ,
    READ_WRITE,
    SHARED,
    WRITE,
)
from support.proc import maps
from support.wait import until
from support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

SIZE = 2 * QUANTUM + 5 * PAGE  # not the size of a region
MIDDLE = 64 * PAGE
DONTNEED, FREE, REMOVE, DONTFORK, DOFORK, WIPEONFORK = 4, 8, 9, 10, 11, 18
POPULATE_READ, POPULATE_WRITE, COLD, PAGEOUT, HUGEPAGE, DONTDUMP = 22, 23, 20, 21, 14, 16
BITS_32, LOCKED = 0x40, 0x2000
CLOSE_RANGE_END = (1 << 32) - 1


@pytest.fixture(params=["plain", "adopting"])
def agent(request: pytest.FixtureRequest) -> Agent:
    """A process on Linux's own memory, then one whose memory is adopted."""
    return request.getfixturevalue(request.param)


def shared(
    agent: Agent, size: int = SIZE, prot: int = READ_WRITE, at: int = 0, flags: int = 0
) -> int:
    """New anonymous shared memory: its address."""
    return agent.call("mmap", at, size, prot, SHARED | ANONYMOUS | flags, -1, 0)


def the_region(mount: Mount) -> View:
    """A look at the only region of a mount; it has no name."""
    objects = mount.state / "regions"
    (path,) = objects.glob("*.mm")
    return View("the region", objects, int(path.stem))


def regions(agent: Agent) -> int:
    """The number of regions in which the agent has adopted memory."""
    return len({each.inode for each in maps(agent.pid) if ".mem" in each.path})


class TestWhatIsAdopted:
    @pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, SIZE, 4 * QUANTUM])
    def test_from_the_size_on(self, adopting: Agent, shared_mount: Mount, size: int) -> None:
        base = shared(adopting, size)
        assert regions(adopting) == 1
        assert os.listdir(shared_mount.path) == ["mshare_info"]  # it has no name
        assert adopting.store(base + size - 1, 1) == "ok"
        assert adopting.call("munmap", base, size) == 0
        assert regions(adopting) == 0

    def test_who_has_it_has_adopted_it(self, adopting: Agent, shared_mount: Mount) -> None:
        """And is seen from outside, with the parts that it has."""
        base = shared(adopting)
        child = adopting.fork()
        assert child.call("munmap", base + MIDDLE, PAGE) == 0
        with the_region(shared_mount) as view:
            found = {
                client["pid"]: (client["kind"], client["parts"])
                for client in describe.adopted(view, [1, adopting.pid, child.pid])
            }
        after = MIDDLE + PAGE
        assert found == {
            adopting.pid: ("adopted", [(base, SIZE, 0)]),
            child.pid: (
                "adopted",
                [(base, MIDDLE, 0), (base + after, SIZE - after, after)],
            ),
        }
        assert mountpoint.attached_processes(shared_mount.path) == [adopting.pid, child.pid]

    @pytest.mark.parametrize(
        ("size", "prot", "flags"),
        [
            ((1 << 20) - PAGE, READ_WRITE, SHARED | ANONYMOUS),
            (SIZE, READ_WRITE, PRIVATE | ANONYMOUS),
        ],
    )
    def test_not_these(self, adopting: Agent, size: int, prot: int, flags: int) -> None:
        base = adopting.call("mmap", 0, size, prot, flags, -1, 0)
        assert regions(adopting) == 0
        assert adopting.store(base, 1) == "ok"

    @pytest.mark.parametrize(
        ("prot", "flags"),
        [
            (READ_WRITE, LOCKED),
            (READ_WRITE, BITS_32),
            (READ_WRITE | EXEC, 0),
            (READ, LOCKED | BITS_32),
        ],
    )
    def test_with_these_rights_and_flags(
        self, agent: Agent, adopting: Agent, prot: int, flags: int
    ) -> None:
        """Locked, executable and 32-bit memory is what Linux would make of it."""
        base = shared(agent, prot=prot, flags=flags)
        assert regions(agent) == (agent is adopting)
        assert (base < 1 << 31) == bool(flags & BITS_32)
        (mapping,) = (each for each in maps(agent.pid) if each.start == base)
        assert mapping.prot == ("r-xs" if prot & EXEC else "r--s").replace(
            "r-", "rw" if prot & WRITE else "r-"
        )
        assert proc.status(agent.pid, "VmLck") == ("4116 kB" if flags & LOCKED else "0 kB")
        if prot & EXEC:  # ret
            agent.call("memset", base, 0xC3, PAGE)
            assert agent.call("mprotect", base, PAGE, READ | EXEC) == 0
        assert agent.call("munmap", base, SIZE) == 0
        assert proc.status(agent.pid, "VmLck") == "0 kB"

    def test_at_any_address(self, adopting: Agent) -> None:
        at = PLACE + PAGE
        assert shared(adopting, at=at, flags=FIXED) == at
        assert shared(adopting, at=at + 8 * QUANTUM) == at + 8 * QUANTUM
        assert regions(adopting) == 2
        assert adopting.store(at, 1) == "ok"

    def test_its_pages_are_its_entries(self, adopting: Agent, shared_mount: Mount) -> None:
        base = shared(adopting)
        adopting.call("memset", base, 1, 3 * PAGE)
        adopting.fork().store(base + QUANTUM, 1)
        sampler = sampling.Sampler(lambda: [adopting.pid], shared_mount.state)
        sampler.look()
        found = sampler.document()
        assert (found["region_faults"], found["prefaulted"], found["links"]) == (4, 0, 1)
        assert adopting.call("madvise", base, 2 * PAGE, REMOVE) == 0
        adopting.store(base + 2 * QUANTUM, 1)
        sampler.look()
        assert sampler.document()["region_faults"] == 5
        with the_region(shared_mount) as view:
            tables = describe.pagetable(view)["levels"][-1]["tables"]
            assert [table["present"] for table in tables] == [1, 1, 1]
            audit = describe.audit(view)
        assert audit["leaves"] == 3
        assert not audit["bad"] + audit["stray"] + audit["lost"] + audit["held"]

    def test_memory_goes_back_with_the_last_process(
        self, adopting: Agent, shared_mount: Mount
    ) -> None:
        objects = shared_mount.state / "regions"
        base = shared(adopting)
        adopting.store(base, 1)
        child = adopting.fork()
        adopting.exit()
        assert child.load(base) == "1"
        assert list(objects.glob("*.mm"))
        child.exit()
        until(lambda: not list(objects.iterdir()), "the region gone")

    def test_when_it_cannot_be_it_is_said_and_works(
        self, mounts: Callable[..., Mount], agents: Agents, agent_program: Path, tmp_path: Path
    ) -> None:
        mount = mounts("quantum=2M")
        environ = running.environment(mount.path, 1 << 20)
        mount.stop()
        log = tmp_path / "stderr"
        agent = agents.start(["sh", "-c", f'exec "$0" "$1" 2>{log}', agent_program], environ)
        base = shared(agent)
        assert agent.store(base, 1) == "ok"
        assert agent.fork().load(base) == "1"
        assert log.read_text() == (
            f"msharefs: process {agent.pid}: {SIZE} bytes of shared memory stay plain: "
            "No such file or directory\n"
        )


class TestHandover:
    """With a budget the memory is watched, and left to Linux where it is fully populated."""

    RUN = 64 * PAGE

    def fill(self, agent: Agent, start: int, value: int) -> None:
        """From the end backwards: a forward sequence would fill more pages ahead."""
        for at in range(start + self.RUN - PAGE, start - PAGE, -PAGE):
            agent.call("memset", at, value, PAGE)

    def test_with_a_budget_not_before_a_fault(
        self, agents: Agents, agent_program: Path, shared_mount: Mount
    ) -> None:
        environ = running.environment(shared_mount.path, 1 << 20) | {"MSHAREFS_PT_BUDGET": "1M"}
        agent = agents.start([agent_program], environ)
        base = shared(agent)
        self.fill(agent, base, 7)
        child = agent.fork()
        assert watched(child.pid, base, SIZE) == [(0, SIZE)]
        assert child.load(base) == "7"
        assert watched(child.pid, base, SIZE) == [(self.RUN, SIZE)]
        grandchild = child.fork()
        assert watched(grandchild.pid, base, SIZE) == [(0, SIZE)]
        assert grandchild.load(base + PAGE) == "7"

    def test_it_can_be_remapped_and_unmapped(self, agent: Agent) -> None:
        """As one mapping, as the program sees it."""
        base = shared(agent)
        agent.call("memset", base + PAGE, 7, self.RUN)
        child = agent.fork()
        assert child.call("munmap", base + 2 * PAGE, PAGE) == 0
        assert child.load(base + 2 * PAGE) == "SIGSEGV MAPERR"
        grandchild = child.fork()
        assert grandchild.load(base + 2 * PAGE) == "SIGSEGV MAPERR"
        assert grandchild.load(base + 3 * PAGE) == "7"
        other = agent.fork()
        moved = other.call("mremap", base, SIZE, SIZE, MAYMOVE | MREMAP_FIXED, PLACE)
        assert moved == PLACE
        assert other.load(PLACE + PAGE) == "7"
        assert other.load(base + PAGE) == "SIGSEGV MAPERR"
        other.store(PLACE + SIZE - 1, 9)
        assert agent.load(base + SIZE - 1) == "9"


class TestFork:
    def test_is_shared_both_ways(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        child = agent.fork()
        grandchild = child.fork()
        assert child.load(base) == "1"
        grandchild.store(base + PAGE, 2)
        assert (agent.load(base + PAGE), child.load(base + PAGE)) == ("2", "2")
        agent.store(base + SIZE - 1, 3)
        assert grandchild.load(base + SIZE - 1) == "3"

    def test_each_has_its_own_mapping(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        child = agent.fork()
        assert child.call("munmap", base, SIZE) == 0
        assert child.load(base) == "SIGSEGV MAPERR"
        assert agent.call("mprotect", base, SIZE, READ) == 0
        assert agent.load(base) == "1"

    def test_vfork(self, agent: Agent) -> None:
        base = shared(agent)
        assert agent.ask("vfork", base, 7) == "0"
        assert agent.load(base) == "7"

    def test_nothing_after_exec(self, agent: Agent) -> None:
        base = shared(agent)
        new = agent.exec()
        assert regions(new) == 0
        assert new.load(base) == "SIGSEGV MAPERR"

    def test_a_daemon_of_another_user(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        child = agent.fork()
        agent.exit()
        child.call("setsid")
        child.call("setresgid", 65534, 65534, 65534)
        child.call("setresuid", 65534, 65534, 65534)
        child.call("chdir", "/")
        child.result("close_range", 100, CLOSE_RANGE_END, 0)
        for fd in range(100, 700):
            child.result("close", fd)
        worker = child.fork()
        assert worker.load(base) == "1"
        assert worker.store(base + MIDDLE, 2) == "ok"
        assert child.load(base + MIDDLE) == "2"
        assert child.call("munmap", base, SIZE) == 0


class TestMunmap:
    @pytest.mark.parametrize(
        ("start", "end"),
        [(0, PAGE), (MIDDLE, MIDDLE + PAGE), (SIZE - PAGE, SIZE), (0, SIZE // PAGE // 2 * PAGE)],
    )
    def test_a_part(self, agent: Agent, start: int, end: int) -> None:
        base = shared(agent)
        for offset in (0, MIDDLE, SIZE - 1):
            agent.store(base + offset, 1)
        assert agent.call("munmap", base + start, end - start) == 0
        for offset in (0, MIDDLE, SIZE - 1):
            gone = start <= offset < end
            assert agent.load(base + offset) == ("SIGSEGV MAPERR" if gone else "1")

    def test_bit_by_bit(self, agent: Agent) -> None:
        base = shared(agent, SIZE)
        for offset in itertools.chain(range(0, SIZE, 2 * PAGE), range(PAGE, SIZE, 2 * PAGE)):
            assert agent.call("munmap", base + offset, PAGE) == 0
            if offset == SIZE // 2 // (2 * PAGE) * 2 * PAGE:
                assert agent.fork().store(base + SIZE - PAGE, 1) == "ok"
        assert agent.load(base) == "SIGSEGV MAPERR"

    def test_a_hole_may_be_others(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        flags = PRIVATE | ANONYMOUS | FIXED
        assert agent.call("munmap", base + MIDDLE, 2 * PAGE) == 0
        agent.call("mmap", base + MIDDLE, PAGE, READ_WRITE, flags, -1, 0)
        agent.store(base + MIDDLE, 9)
        child = agent.fork()
        assert child.load(base + MIDDLE) == "9"
        child.store(base + MIDDLE, 8)
        assert agent.load(base + MIDDLE) == "9"
        assert child.load(base + MIDDLE + PAGE) == "SIGSEGV MAPERR"
        assert child.load(base) == "1"
        assert agent.call("munmap", base, SIZE) == 0

    def test_other_memory_over_a_part(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base + MIDDLE, 1)
        child = agent.fork()
        flags = PRIVATE | ANONYMOUS | FIXED
        assert agent.call("mmap", base, MIDDLE + PAGE, READ_WRITE, flags, -1, 0) == base
        assert agent.load(base + MIDDLE) == "0"
        assert child.load(base + MIDDLE) == "1"
        assert agent.store(base + MIDDLE + PAGE, 2) == "ok"
        assert child.load(base + MIDDLE + PAGE) == "2"

    def test_other_shared_memory_over_a_part(self, agent: Agent) -> None:
        base = shared(agent, 4 * QUANTUM, at=PLACE, flags=FIXED)
        agent.store(base + QUANTUM, 1)
        assert shared(agent, QUANTUM, at=base + QUANTUM, flags=FIXED) == base + QUANTUM
        assert agent.load(base + QUANTUM) == "0"
        agent.store(base + QUANTUM, 2)
        child = agent.fork()
        assert child.load(base + QUANTUM) == "2"
        child.store(base, 3)
        assert agent.load(base) == "3"


class TestMprotect:
    def test_a_part_in_one_process(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base + MIDDLE, 1)
        child = agent.fork()
        assert agent.call("mprotect", base + MIDDLE, PAGE, READ) == 0
        assert agent.load(base + MIDDLE) == "1"
        assert agent.store(base + MIDDLE, 2) == "SIGSEGV ACCERR"
        assert agent.store(base + MIDDLE + PAGE, 2) == "ok"
        assert child.store(base + MIDDLE, 3) == "ok"
        assert agent.load(base + MIDDLE) == "3"
        assert agent.fork().store(base + MIDDLE, 4) == "SIGSEGV ACCERR"
        assert agent.call("mprotect", base, SIZE, 0) == 0
        assert agent.load(base) == "SIGSEGV ACCERR"
        assert agent.call("mprotect", base, SIZE, READ_WRITE) == 0
        assert agent.store(base + MIDDLE, 5) == "ok"
        assert child.load(base + MIDDLE) == "5"

    @pytest.mark.parametrize("prot", [0, READ, WRITE])
    def test_more_than_at_first(self, agent: Agent, prot: int) -> None:
        base = shared(agent, prot=prot)
        if not prot & WRITE:
            assert agent.store(base, 1) == "SIGSEGV ACCERR"
        assert agent.call("mprotect", base, PAGE, READ_WRITE) == 0
        assert agent.store(base, 1) == "ok"
        child = agent.fork()
        assert child.load(base) == "1"
        assert child.store(base, 2) == "ok"


class TestMadvise:
    def test_dontneed_keeps_the_memory(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        assert agent.call("madvise", base, SIZE - PAGE, DONTNEED) == 0
        assert agent.load(base) == "1"
        assert agent.store(base, 2) == "ok"

    def test_remove_empties_it_for_all(self, agent: Agent) -> None:
        base = shared(agent)
        child = agent.fork()
        for offset in (0, PAGE, 2 * PAGE):
            child.store(base + offset, 1)
            agent.load(base + offset)
        assert agent.call("madvise", base, 2 * PAGE, REMOVE) == 0
        for who in (agent, child):
            assert [who.load(base + offset) for offset in (0, PAGE, 2 * PAGE)] == ["0", "0", "1"]
        agent.store(base, 5)
        assert child.load(base) == "5"

    def test_dontfork_of_a_part(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        agent.store(base + MIDDLE, 1)
        assert agent.call("madvise", base + MIDDLE, 2 * PAGE, DONTFORK) == 0
        assert agent.call("madvise", base + MIDDLE + PAGE, PAGE, DOFORK) == 0
        child = agent.fork()
        assert child.load(base) == "1"
        assert child.load(base + MIDDLE) == "SIGSEGV MAPERR"
        assert child.store(base + MIDDLE + PAGE, 2) == "ok"
        assert agent.load(base + MIDDLE + PAGE) == "2"
        assert child.fork().load(base + MIDDLE + PAGE) == "2"
        assert agent.call("madvise", base, SIZE, DONTFORK) == 0
        assert agent.fork().load(base) == "SIGSEGV MAPERR"

    @pytest.mark.parametrize(
        ("advice", "errno"),
        [(FREE, "EINVAL"), (WIPEONFORK, "EINVAL"), (POPULATE_READ, "0"), (POPULATE_WRITE, "0"),
         (COLD, "0"), (PAGEOUT, "0"), (HUGEPAGE, "0"), (DONTDUMP, "0"), (77, "EINVAL")],
    )  # fmt: skip
    def test_other_advice(self, agent: Agent, advice: int, errno: str) -> None:
        base = shared(agent)
        agent.store(base + MIDDLE, 1)
        assert agent.say("madvise", base + MIDDLE, 2 * PAGE, advice) == errno
        assert agent.load(base + MIDDLE) == "1"


class TestMremap:
    def test_smaller(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        assert agent.call("mremap", base, SIZE, MIDDLE, 0, 0) == base
        assert agent.load(base) == "1"
        assert agent.load(base + MIDDLE) == "SIGSEGV MAPERR"
        assert agent.fork().load(base) == "1"

    def test_larger_in_place(self, agent: Agent) -> None:
        # If there is room behind it: its own end, given back before, and more.
        base = shared(agent, at=PLACE)
        agent.store(base, 1)
        assert agent.call("munmap", base + MIDDLE, SIZE - MIDDLE) == 0
        assert agent.call("mremap", base, MIDDLE, SIZE + PAGE, 0, 0) == base
        assert agent.store(base + SIZE - 1, 2) == "ok"
        assert agent.load(base + SIZE) == "SIGBUS ADRERR"
        assert agent.load(base) == "1"
        child = agent.fork()
        assert child.load(base + SIZE - 1) == "2"
        assert agent.call("munmap", base, SIZE + PAGE) == 0

    @pytest.mark.parametrize("of", ["plain", "budget"])
    def test_far_larger_than_it_is(
        self,
        mounts: Callable[..., Mount],
        agents: Agents,
        agent_program: Path,
        of: str,
    ) -> None:
        """The region is larger than the memory: faults past its end come to us."""
        budget = {"MSHAREFS_PT_BUDGET": "256K"}  # 64 spans
        environ = running.environment(mounts("quantum=1G").path, 1 << 20) | budget
        agent = agents.start([agent_program], environ if of == "budget" else None)
        size, more = 64 << 20, 1 << 30
        base = shared(agent, size, at=PLACE)
        assert regions(agent) == (of == "budget")
        assert agent.call("mremap", base, size, more, 0, 0) == base
        for _ in range(2):
            for at in range(more - QUANTUM, size - QUANTUM, -31 * QUANTUM):
                assert agent.load(base + at) == "SIGBUS ADRERR"
            for at in range(0, size, QUANTUM):
                assert agent.load(base + at) in ("0", "1")
                assert agent.store(base + at, 1) == "ok"
        child = agent.fork()
        assert child.load(base + more - PAGE) == "SIGBUS ADRERR"
        assert child.load(base + size - QUANTUM) == "1"
        assert agent.call("munmap", base, more) == 0

    def test_moved(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        child = agent.fork()
        flags = MAYMOVE | MREMAP_FIXED
        assert agent.call("mremap", base, SIZE, SIZE, flags, PLACE) == PLACE
        assert agent.load(base) == "SIGSEGV MAPERR"
        assert agent.load(PLACE) == "1"
        agent.store(PLACE + MIDDLE, 2)
        assert child.load(base + MIDDLE) == "2"
        assert agent.fork().load(PLACE + MIDDLE) == "2"
        assert agent.call("munmap", PLACE, SIZE) == 0

    def test_a_part_moved(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base + MIDDLE, 1)
        flags = MAYMOVE | MREMAP_FIXED
        assert agent.call("mremap", base + MIDDLE, PAGE, PAGE, flags, PLACE) == PLACE
        assert agent.load(base + MIDDLE) == "SIGSEGV MAPERR"
        child = agent.fork()
        assert (child.load(PLACE), child.load(base)) == ("1", "0")
        assert child.load(base + MIDDLE) == "SIGSEGV MAPERR"

    def test_a_second_time(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base, 1)
        assert agent.call("mremap", base, 0, SIZE, MAYMOVE | MREMAP_FIXED, PLACE) == PLACE
        agent.store(PLACE + PAGE, 2)
        assert (agent.load(PLACE), agent.load(base + PAGE)) == ("1", "2")

    def test_over_a_part(self, agent: Agent) -> None:
        base = shared(agent)
        other = agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        agent.store(other, 9)
        flags = MAYMOVE | MREMAP_FIXED
        assert agent.call("mremap", other, PAGE, PAGE, flags, base + MIDDLE) == base + MIDDLE
        assert agent.load(base + MIDDLE) == "9"
        assert agent.fork().store(base + MIDDLE + PAGE, 1) == "ok"
        assert agent.load(base + MIDDLE + PAGE) == "1"

    @pytest.mark.parametrize(
        ("old", "new", "flags"),
        [
            (SIZE, 0, 0),
            (SIZE + PAGE, SIZE + 2 * PAGE, 0),
            (SIZE, SIZE, 64),
            (PAGE, PAGE, MREMAP_FIXED),
        ],
    )
    def test_nonsense(self, agent: Agent, old: int, new: int, flags: int) -> None:
        base = shared(agent, at=PLACE)
        assert agent.say("mremap", base, old, new, flags, 0) in ("EINVAL", "EFAULT")
        assert agent.load(base) == "0"


class TestOtherCalls:
    def test_mlock(self, agent: Agent) -> None:
        base = shared(agent)
        assert agent.call("mlock", base, MIDDLE) == 0
        assert agent.call("munlock", base, SIZE) == 0
        assert agent.say("mlock", base, SIZE + PAGE) in ("0", "ENOMEM")

    @pytest.mark.parametrize("flags", [1, 2, 4, 4 | 2])
    def test_msync(self, agent: Agent, flags: int) -> None:
        base = shared(agent)
        assert agent.say("msync", base, SIZE, flags) == "0"
        assert agent.say("msync", base + PAGE, PAGE, flags) == "0"

    def test_mincore(self, agent: Agent) -> None:
        base = shared(agent)
        agent.store(base + PAGE, 1)
        assert agent.call("mincore", base, 4 * PAGE, agent.pool) == 0
        assert agent.get(agent.pool, 4) == b"\0\1\0\0"

    def test_hints(self, agent: Agent) -> None:
        assert shared(agent, at=PLACE) == PLACE
        assert shared(agent, at=PLACE) != PLACE
        assert shared(agent, at=PLACE + 8 * QUANTUM, flags=NOREPLACE) == PLACE + 8 * QUANTUM
        failed = agent.result(
            "mmap", PLACE, SIZE, READ_WRITE, SHARED | ANONYMOUS | NOREPLACE, -1, 0
        )
        assert failed == (FAILED, "EEXIST")

    @pytest.mark.parametrize("size", [PAGE * 300 + 1, 3 * QUANTUM, SIZE - 1])
    def test_sizes(self, agent: Agent, size: int) -> None:
        base = shared(agent, size)
        assert agent.store(base + size - 1, 1) == "ok"
        assert agent.call("munmap", base, size) == 0
        assert agent.load(base) == "SIGSEGV MAPERR"

    def test_read_and_write_of_untouched_pages(self, agent: Agent) -> None:
        base = shared(agent)
        fd = agent.call("open", "/dev/zero", os.O_RDWR)
        assert agent.call("read", fd, base, SIZE) == SIZE
        again = shared(agent)
        assert agent.call("write", fd, again, SIZE) == SIZE
