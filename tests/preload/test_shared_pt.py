"""MAP_SHARED_PT under `msharefs run --shared-pt`: who shares what with whom, and what ends it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab import sampling, shared_pt
from msharefs.lab.plan import TABLE_BYTES
from msharefs.launch import running
from msharefs.server.memory import Memory

from .conftest import (
    ANONYMOUS,
    FIXED,
    NOREPLACE,
    PAGE,
    PLACE,
    PRIVATE,
    QUANTUM,
    READ,
    READ_WRITE,
    SHARED,
)
from support.proc import maps
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

FLAG = 1 << 22  # of no meaning to Linux
ANDROID = 0x40000  # MAP_HUGETLB
SPAN = 2 << 20
TABLES = 8
SIZE = TABLES * SPAN
OTHER = PLACE + (1 << 40)
DONTNEED, REMOVE, DONTFORK, GUARD = 4, 9, 10, 102


@pytest.fixture
def start(
    agents: Agents, agent_program: Path, shared_mount: Mount
) -> Iterator[Callable[..., Agent]]:
    """Start an agent for which the flag has a value and somebody's rules."""

    def run(mode: str = "android", value: int = FLAG) -> Agent:
        environ = running.environment(shared_mount.path, None)
        return agents.start([agent_program], environ | {running.SHARED_PT: f"{mode}:{value:#x}"})

    yield run
    agents.clean()
    until(lambda: not regions(shared_mount), "no region left")


def regions(mount: Mount) -> dict[int, Any]:
    """Those that are left: whose memory is gone, goes."""
    sampler = sampling.Sampler(list, mount.state)
    sampler.look()
    return sampler.regions


@pytest.fixture
def android(start: Callable[..., Agent]) -> Agent:
    return start()


def file(agent: Agent, size: int = SIZE) -> int:
    fd = agent.call("memfd_create", "library", 0)
    agent.call("ftruncate", fd, size)
    return fd


def mapped(
    agent: Agent, at: int = PLACE, *, fd: int | None = None, prot: int = READ_WRITE,
    flags: int = SHARED,
) -> int:  # fmt: skip
    """A flagged mapping of all of a file; its descriptor."""
    fd = file(agent) if fd is None else fd
    assert agent.call("mmap", at, SIZE, prot, flags | FIXED | FLAG, fd, 0) == at
    return fd


def touch(agent: Agent, at: int = PLACE) -> None:
    """Have a page of each table."""
    assert [agent.load(at + table * SPAN) for table in range(TABLES)] == ["0"] * TABLES


def counted(*agents: Agent) -> tuple[int, int, int, dict[str, int]]:
    """Own tables, those that would be there once, what would go; and the unshared by cause."""
    found = shared_pt.count([agent.pid for agent in agents]).document()
    assert not found["inexact"]
    unshared = {one["cause"]: one["bytes"] // TABLE_BYTES for one in found["unshared"]}
    sizes = (found[f"{key}_bytes"] // TABLE_BYTES for key in ("own_tables", "page_table", "saved"))
    return *sizes, unshared  # type: ignore[return-value]


class TestAndroid:
    @pytest.mark.parametrize(
        ("prot", "flags"), [(READ, SHARED), (READ_WRITE, SHARED), (READ, PRIVATE), (0, PRIVATE)]
    )
    def test_maps_what_it_shares(self, android: Agent, prot: int, flags: int) -> None:
        mapped(android, prot=prot, flags=flags)
        assert counted(android) == (0, 0, 0, {})
        if prot:
            touch(android)
            assert counted(android) == (TABLES, TABLES, 0, {})

    def test_refuses_all_else(self, android: Agent, shared_mount: Mount) -> None:
        fd = file(android)
        region = android.call("open", str(shared_mount.path / "pt"), os.O_RDWR | os.O_CREAT, 0o600)
        android.call("ftruncate", region, QUANTUM)
        os.unlink(shared_mount.path / "pt")
        assert android.call("mmap", OTHER, PAGE, READ, PRIVATE | ANONYMOUS | FIXED, -1, 0) == OTHER
        before = maps(android.pid)
        for address, length, prot, flags, descriptor in (
            (PLACE, SIZE, READ, SHARED, fd),
            (PLACE, SIZE, READ, SHARED | NOREPLACE, fd),
            (PLACE + PAGE, SIZE, READ, SHARED | FIXED, fd),
            (PLACE, SIZE - PAGE, READ, SHARED | FIXED, fd),
            (PLACE, 0, READ, SHARED | FIXED, fd),
            (PLACE, SIZE, READ_WRITE, PRIVATE | FIXED, fd),
            (PLACE, SIZE, READ, SHARED | ANONYMOUS | FIXED, -1),
            (OTHER, SIZE, READ, SHARED | FIXED, fd),
            (OTHER - SPAN, SIZE, READ, SHARED | FIXED, fd),
            (PLACE, QUANTUM, READ_WRITE, SHARED | FIXED, region),
            (PLACE, SIZE, READ, FIXED, fd),
        ):
            said = android.say("mmap", address, length, prot, flags | FLAG, descriptor, 0)
            assert said == "EINVAL", (address, length, prot, flags)
        assert android.say("mmap", PLACE, SIZE, READ, SHARED | FIXED | FLAG, 999, 0) == "EBADF"
        assert maps(android.pid) == before
        assert shared_pt.ledger(android.pid) is None

    def test_by_its_own_value_huge_pages_stay_what_they_are(
        self, start: Callable[..., Agent], plain: Agent
    ) -> None:
        """The value is MAP_HUGETLB, and without a file that is what it means."""
        agent = start(value=ANDROID)
        arguments = (PLACE, SIZE, READ, SHARED | FIXED | ANDROID)
        assert plain.say("mmap", *arguments, file(plain), 0) == "EINVAL"
        assert agent.call("mmap", *arguments, file(agent), 0) == PLACE
        touch(agent)
        assert counted(agent) == (TABLES, TABLES, 0, {})
        huge = (OTHER, SIZE, READ_WRITE, PRIVATE | ANONYMOUS | FIXED | ANDROID, -1, 0)
        assert agent.say("mmap", *huge) == plain.say("mmap", *huge)

    def test_children_share_without_their_knowing(self, android: Agent) -> None:
        mapped(android)
        children = [android.fork(), android.fork()]
        grandchild = children[0].fork()
        family = [android, *children, grandchild]
        for agent in family:
            touch(agent)
        assert counted(*family) == (4 * TABLES, TABLES, 3 * TABLES, {})
        # What one maps later is its own and its children's.
        mapped(children[1], OTHER)
        touch(children[1], OTHER)
        assert counted(*family) == (5 * TABLES, 2 * TABLES, 3 * TABLES, {})
        replaced = grandchild.exec()
        assert shared_pt.ledger(replaced.pid) is None
        assert counted(android, *children) == (4 * TABLES, 2 * TABLES, 2 * TABLES, {})

    def test_siblings_that_map_by_themselves_do_not(self, android: Agent) -> None:
        fd = file(android)
        for child in (children := [android.fork(), android.fork()]):
            mapped(child, fd=fd)
            touch(child)
        assert counted(*children) == (2 * TABLES, 2 * TABLES, 0, {})

    def test_each_way_to_unshare(self, android: Agent) -> None:
        mapped(android)
        child = android.fork()
        touch(android)
        touch(child)
        table = [PLACE + number * SPAN for number in range(TABLES)]
        child.call("mprotect", table[0] + PAGE, PAGE, READ)
        child.call("madvise", table[1], PAGE, DONTNEED)
        child.call("madvise", table[2], PAGE, REMOVE)
        child.call("munmap", table[3], PAGE)
        child.call("munmap", table[4], SPAN)
        child.call("mmap", table[5], PAGE, READ, PRIVATE | ANONYMOUS | FIXED, -1, 0)
        assert child.call("mremap", table[6], SPAN, SPAN, 3, OTHER) == OTHER
        for address in (*table[1:3], table[3] + PAGE, table[5] + PAGE, OTHER):
            assert child.load(address) == "0"
        touch(android)
        unshared = {"mprotect": 1, "madvise": 2, "munmap": 2, "mremap": 1}
        assert counted(child) == (7, 1, 0, unshared)
        assert counted(android, child) == (TABLES + 7, TABLES, 1, unshared)
        # It stays so, for its children too; and what goes altogether is not counted.
        child.call("mprotect", table[0] + PAGE, PAGE, READ_WRITE)
        grandchild = child.fork()
        for address in (table[0], table[1], table[2], table[3] + PAGE, table[5] + PAGE, OTHER):
            assert grandchild.load(address) == "0"
        assert counted(grandchild) == (6, 0, 0, unshared)
        grandchild.call("munmap", PLACE, SIZE)
        grandchild.call("munmap", OTHER, SPAN)
        assert counted(grandchild) == (0, 0, 0, {})

    def test_a_mapping_that_grows(self, android: Agent) -> None:
        fd = file(android, 2 * SIZE)
        mapped(android, fd=fd)
        touch(android)
        assert android.call("mremap", PLACE, SIZE, 2 * SIZE, 0) == PLACE
        assert counted(android) == (TABLES, 0, 0, {"mremap": TABLES})

    def test_a_write_past_its_protection(self, android: Agent) -> None:
        """As by ptrace(2): the page becomes the process's own."""
        mapped(android, prot=READ, flags=PRIVATE)
        child = android.fork()
        touch(android)
        touch(child)
        with open(f"/proc/{child.pid}/mem", "r+b", buffering=0) as memory:
            assert os.pread(memory.fileno(), 1, PLACE) == b"\0"  # reading is no matter
            assert counted(child) == (TABLES, TABLES, 0, {})
            assert os.pwrite(memory.fileno(), b"x", PLACE + 3 * SPAN) == 1
        assert (child.load(PLACE + 3 * SPAN), android.load(PLACE + 3 * SPAN)) == ("120", "0")
        assert counted(android, child) == (2 * TABLES, TABLES, TABLES - 1, {"write": 1})

    def test_what_does_not_unshare(self, android: Agent) -> None:
        mapped(android)
        touch(android)
        assert android.say("madvise", PLACE, PAGE, GUARD) == "EINVAL"
        assert android.say("mprotect", PLACE + 1, PAGE, READ) == "EINVAL"
        assert android.say("munmap", PLACE, 0) == "EINVAL"
        assert android.store(PLACE, 1) == "ok"
        assert android.call("madvise", PLACE, SIZE, DONTFORK) == 0
        child = android.fork()
        assert child.load(PLACE) == "SIGSEGV MAPERR"
        assert counted(child) == (0, 0, 0, {})
        assert counted(android) == (TABLES, TABLES, 0, {})

    def test_what_is_mapped_there_later_is_ordinary(self, android: Agent) -> None:
        fd = mapped(android)
        android.call("munmap", PLACE, SIZE)
        assert android.call("mmap", PLACE, SIZE, READ, SHARED | FIXED, fd, 0) == PLACE
        touch(android)
        assert counted(android) == (0, 0, 0, {})

    def test_a_ledger_without_room_says_so(self, android: Agent) -> None:
        """A thousand places: from then on more counts as unshared than is."""
        fd = file(android, PAGE)
        count = 4096
        length = count * SPAN
        assert android.call("mmap", PLACE, length, READ, SHARED | FIXED | FLAG, fd, 0) == PLACE
        for table in range(1, count, 2):
            android.call("mprotect", PLACE + table * SPAN, PAGE, READ_WRITE)
        found = shared_pt.ledger(android.pid)
        assert found is not None
        assert found.inexact
        own = {"": 0, "mprotect": 0}
        for one in found.ranges:
            own[one.cause] += (one.end - one.start) // SPAN
        assert own["mprotect"] >= count // 2
        assert sum(own.values()) == count


class TestRegion:
    def adopted(self, agent: Agent, address: int) -> bool:
        """Whether memory there is a region's."""
        found = (re.match(r"([0-9a-f]+)-.*/memfd:\d+\.mem", str(line)) for line in lines(agent))
        return address in {int(one[1], 16) for one in found if one}

    def test_memory_of_a_parent_is_its_childrens(self, start: Callable[..., Agent]) -> None:
        """Whatever its size, though nothing is adopted unasked."""
        agent = start("region")
        flags = SHARED | ANONYMOUS
        flagged = agent.call("mmap", 0, 3 * PAGE, READ_WRITE, flags | FLAG, -1, 0)
        unasked = agent.call("mmap", 0, SIZE, READ_WRITE, flags, -1, 0)
        assert [self.adopted(agent, place) for place in (flagged, unasked)] == [True, False]
        child = agent.fork()
        assert child.store(flagged + PAGE, 7) == "ok"
        assert agent.load(flagged + PAGE) == "7"
        assert self.adopted(child, flagged)

    def test_dev_zero_too(self, start: Callable[..., Agent]) -> None:
        agent = start("region")
        zero = agent.call("open", "/dev/zero", os.O_RDWR)
        assert self.adopted(agent, agent.call("mmap", 0, SIZE, READ_WRITE, SHARED | FLAG, zero, 0))

    def test_a_memfd_stays_linux_memory(
        self, start: Callable[..., Agent], shared_mount: Mount
    ) -> None:
        agent = start("region")
        agent.call("mmap", 0, SIZE, READ_WRITE, SHARED | FLAG, file(agent), 0)
        known = [Memory.read(path) for path in (shared_mount.state / "regions").glob("*.adopted")]
        assert [(one.kind, one.held) for one in known if one is not None] == [("memfd", False)]

    def test_a_region_is_attached(self, start: Callable[..., Agent], shared_mount: Mount) -> None:
        agent = start("region")
        path = str(shared_mount.path / "pt")
        fd = agent.call("open", path, os.O_RDWR | os.O_CREAT, 0o600)
        os.unlink(path)
        agent.call("ftruncate", fd, QUANTUM)
        base = agent.call("mmap", 0, QUANTUM, READ_WRITE, SHARED | FLAG, fd, 0)
        assert agent.load(base) == "SIGSEGV MAPERR"  # it is one: it has a hole

    def test_private_memory_is_refused(self, start: Callable[..., Agent]) -> None:
        agent = start("region")
        private = PRIVATE | ANONYMOUS | FLAG
        assert agent.say("mmap", 0, SIZE, READ_WRITE, private, -1, 0) == "EINVAL"


def lines(agent: Agent) -> list[str]:
    with open(f"/proc/{agent.pid}/maps", encoding="utf-8") as text:
        return text.read().splitlines()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shared-pt-flag", "0x20"], "0x20 is no flag that is free"),
        (["--shared-pt-flag", "0xc00000"], "0xc00000 is no flag that is free"),
        (["--shared-pt-flag", "many"], "many is no flag that is free"),
        (["--shared-pt-flag", "0x40000"], "0x40000 is MAP_HUGETLB: only with --shared-pt android"),
        (["--shared-pt", "linux"], "'linux' is not one of 'region', 'android'"),
    ],
)
def test_wrong_usage(options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "msharefs", "run", *options, "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
