"""Memory that Linux makes for a program, told to the server: what is known of it, and till when."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab import sampling
from msharefs.launch import running
from msharefs.server import describe, existing
from msharefs.server.memory import Memory
from msharefs.server.view import View

from .conftest import ANONYMOUS, FIXED, PAGE, PLACE, PRIVATE, QUANTUM, READ, READ_WRITE, SHARED
from support import namespace
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

LEAST = 1 << 20
SIZE = 2 * QUANTUM
REMOVE = 9  # MADV_REMOVE
ALL = dict.fromkeys(running.CLASSES, LEAST)
KEY = 0x53000000 | os.getpid() & 0xFFFFFF


@pytest.fixture
def start(
    agents: Agents, agent_program: Path, shared_mount: Mount, tmp_path: Path
) -> Iterator[Callable[..., Agent]]:
    """Start an agent that adopts all of its memory; what it says is in `said`. All goes in the end.

    Its segments are those of its children, too, and are gone with them.
    """

    def run(**environ: str) -> Agent:
        command = ["sh", "-c", f'exec "$0" "$1" 2>>{tmp_path}/said', agent_program]
        return agents.start(command, {**running.environment(shared_mount.path, ALL), **environ})

    (tmp_path / "said").touch()
    yield run
    agents.clean()
    until(lambda: not look(shared_mount), "no region left")


def look(mount: Mount, *agents: Agent) -> list[sampling.Region]:
    """The regions with the entries they have now; those whose memory is gone go."""
    sampler = sampling.Sampler(lambda: [agent.pid for agent in agents], mount.state)
    sampler.look()
    return list(sampler.regions.values())


def memories(mount: Mount) -> list[Memory]:
    found = (Memory.read(path) for path in (mount.state / "regions").glob("*.adopted"))
    return [memory for memory in found if memory is not None]


def clients(mount: Mount, *agents: Agent) -> list[list[tuple[int, Any]]]:
    """Of each region: the clients among these agents, and their mappings."""
    found = []
    for path in (mount.state / "regions").glob("*.mm"):
        with View("a region", path.parent, int(path.stem)) as view:
            there = describe.adopted(view, [agent.pid for agent in agents])
        found.append([(one["pid"], one["parts"]) for one in there])
    return found


def segment(agent: Agent, size: int = SIZE, key: int = 0) -> int:
    """A segment that goes with its last process, attached."""
    made = agent.call("shmget", key, size, 0o1600)
    base = agent.call("shmat", made, 0, 0)
    agent.call("shmctl", made, 0, 0)
    return base


def memfd(agent: Agent, size: int = SIZE, name: str = "buffers") -> int:
    fd = agent.call("memfd_create", name, 0)
    agent.call("ftruncate", fd, size)
    return fd


def mapped(agent: Agent, fd: int, size: int = SIZE, *, at: int = 0, offset: int = 0) -> int:
    flags = SHARED | (FIXED if at else 0)
    return agent.call("mmap", at, size, READ_WRITE, flags, fd, offset)


class TestOneRegion:
    def test_for_a_segment_that_two_programs_find_by_its_key(
        self, start: Callable[..., Agent], shared_mount: Mount
    ) -> None:
        one, other = start(), start()
        made = one.call("shmget", KEY, SIZE, 0o1600)
        bases = [agent.call("shmat", made, 0, 0) for agent in (one, other)]
        child = other.fork()
        one.store(bases[0], 1)
        child.store(bases[1] + QUANTUM, 1)
        (region,) = look(shared_mount, one, other, child)
        assert (region.mapped_bytes, region.clients, region.faults) == (SIZE, 3, 2)
        (memory,) = memories(shared_mount)
        assert (memory.kind, memory.name) == ("sysv", f"System V key 0x{KEY:x}")
        assert clients(shared_mount, one, child) == [
            [(one.pid, [(bases[0], SIZE, 0)]), (child.pid, [(bases[1], SIZE, 0)])]
        ]
        for agent in (one, other, child):
            agent.exit()
        assert look(shared_mount)  # a segment stays without processes, and so does its region
        last = start()
        assert last.load(last.call("shmat", made, 0, 0)) == "1"
        assert len(look(shared_mount, last)) == 1
        last.call("shmctl", made, 0, 0)
        assert len(look(shared_mount, last)) == 1

    def test_for_a_memfd_that_is_passed_on(
        self, start: Callable[..., Agent], shared_mount: Mount
    ) -> None:
        """It is one object by whatever descriptor, and wherever it is mapped."""
        one, other = start(), start()
        fd = memfd(one)
        base = mapped(one, fd)
        pidfd = other.call("syscall", 434, one.pid, 0)  # pidfd_open
        passed = other.call("syscall", 438, pidfd, fd, 0)  # pidfd_getfd
        half = mapped(other, passed, QUANTUM, offset=QUANTUM)
        one.store(base + QUANTUM, 7)
        assert other.load(half) == "7"
        assert [memory.name for memory in memories(shared_mount)] == ["memfd buffers"]
        assert clients(shared_mount, one, other) == [
            [(one.pid, [(base, SIZE, 0)]), (other.pid, [(half, QUANTUM, QUANTUM)])]
        ]

    def test_for_a_file_of_shm_open(
        self, start: Callable[..., Agent], shared_mount: Mount, tmp_path: Path
    ) -> None:
        agent = start()
        name = str(namespace.SHM / f"existing-{os.getpid()}")
        fd = agent.call("open", name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            agent.call("ftruncate", fd, SIZE)
            agent.store(mapped(agent, fd), 1)
            assert [memory.name for memory in memories(shared_mount)] == [name]
            (region,) = look(shared_mount, agent)
            assert (region.clients, region.faults) == (1, 1)
        finally:
            os.unlink(name)
        assert not (tmp_path / "said").read_text()

    def test_for_dev_zero(
        self, start: Callable[..., Agent], shared_mount: Mount, tmp_path: Path
    ) -> None:
        """It becomes memory of ours, as anonymous memory does, or stays if one could see that."""
        agent = start()
        fd = agent.call("open", "/dev/zero", os.O_RDWR)
        base = mapped(agent, fd)
        child = agent.fork()
        agent.store(base, 5)
        assert child.load(base) == "5"
        assert [(memory.kind, memory.held) for memory in memories(shared_mount)] == [("anon", True)]
        read_only = agent.call("open", "/dev/zero", os.O_RDONLY)
        refused = agent.say("mmap", 0, SIZE, READ_WRITE, SHARED, read_only, 0)
        later = agent.call("mmap", 0, SIZE, READ, SHARED, read_only, 0)
        assert (refused, agent.say("mprotect", later, SIZE, READ_WRITE)) == ("EACCES", "EACCES")
        elsewhere = mapped(agent, fd, offset=SIZE)
        assert agent.load(elsewhere) == "SIGBUS ADRERR"
        assert sorted(memory.held for memory in memories(shared_mount)) == [False, True]
        assert (tmp_path / "said").read_text().endswith("/dev/zero: a device is not memory\n")


class TestItsPages:
    def test_that_go_have_no_entries(
        self, start: Callable[..., Agent], shared_mount: Mount
    ) -> None:
        agent = start()
        fd = memfd(agent)
        base = mapped(agent, fd)
        for at in range(0, SIZE, QUANTUM // 2):
            agent.store(base + at, 1)
        table, upper = 4096, 3 * 4096
        assert look(shared_mount)[0].page_table_bytes == upper + 2 * table
        agent.call("madvise", base, QUANTUM // 2, REMOVE)
        agent.call("ftruncate", fd, QUANTUM)
        (path,) = (shared_mount.state / "regions").glob("*.mm")
        look(shared_mount)
        with View("it", path.parent, int(path.stem)) as view:
            found = describe.audit(view)
        assert found["leaves"] == 1
        assert not found["bad"] + found["stray"] + found["lost"] + found["held"]
        assert agent.load(base + QUANTUM) == "SIGBUS ADRERR"

    def test_of_an_object_that_grows(
        self, start: Callable[..., Agent], shared_mount: Mount
    ) -> None:
        """What is mapped first has no memory yet; a later mapping shows that there is more."""
        agent = start()
        fd = agent.call("memfd_create", "grows", 0)
        base = mapped(agent, fd, QUANTUM)
        agent.call("ftruncate", fd, SIZE)
        agent.store(base, 1)
        assert look(shared_mount)[0].mapped_bytes == QUANTUM
        whole = mapped(agent, fd, SIZE)
        agent.store(whole + QUANTUM, 1)
        (region,) = look(shared_mount, agent)
        assert (region.mapped_bytes, region.faults) == (SIZE, 2)

    def test_beside_its_own(self, start: Callable[..., Agent], shared_mount: Mount) -> None:
        """Linux joins what is mapped side by side, and it is one object all the same."""
        agent = start()
        fd = memfd(agent)
        mapped(agent, fd, QUANTUM, at=PLACE)
        mapped(agent, fd, QUANTUM, at=PLACE + QUANTUM, offset=QUANTUM)
        assert len(look(shared_mount, agent)) == 1


class TestWhatIsNot:
    @pytest.mark.parametrize("size", [LEAST - PAGE, LEAST])
    def test_below_its_size(
        self, start: Callable[..., Agent], shared_mount: Mount, size: int
    ) -> None:
        agent = start()
        segment(agent, size)
        mapped(agent, memfd(agent, size), size)
        assert len(look(shared_mount)) == (2 if size == LEAST else 0)

    def test_private_mappings(self, start: Callable[..., Agent], shared_mount: Mount) -> None:
        agent = start()
        agent.call("mmap", 0, SIZE, READ_WRITE, PRIVATE, memfd(agent), 0)
        agent.call("mmap", 0, SIZE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        assert not look(shared_mount)

    def test_devices_which_is_said_once(
        self, start: Callable[..., Agent], shared_mount: Mount, tmp_path: Path
    ) -> None:
        agent = start()
        fd = agent.call("open", "/dev/zero", os.O_RDONLY)
        for _ in range(2):
            agent.load(agent.call("mmap", 0, LEAST, READ, SHARED, fd, 0))
        assert not look(shared_mount)
        (line,) = (tmp_path / "said").read_text().splitlines()
        assert line == (
            f"msharefs: process {agent.pid}: {LEAST} bytes of /dev/zero are not adopted: "
            "/dev/zero: a device is not memory"
        )

    def test_memory_of_a_program_with_a_budget(
        self, start: Callable[..., Agent], shared_mount: Mount, tmp_path: Path
    ) -> None:
        agent = start(MSHAREFS_PT_BUDGET="4M")
        agent.store(segment(agent), 1)
        assert not look(shared_mount)
        assert (
            "System V shared memory are not adopted: a budget counts"
            in (tmp_path / "said").read_text()
        )

    def test_memory_that_only_root_could_look_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="only root's server may look"):
            existing.look_at(os.getpid(), PLACE, PLACE + PAGE)

    def test_memory_without_a_mount(
        self, start: Callable[..., Agent], shared_mount: Mount, tmp_path: Path
    ) -> None:
        agent = start(MSHAREFS_MOUNT="/nowhere")
        agent.store(segment(agent), 1)
        assert not look(shared_mount)
        assert (tmp_path / "said").read_text().endswith("adopted: No such file or directory\n")


def test_a_region_that_is_met_before_its_memory_is_known(
    start: Callable[..., Agent], shared_mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region is made first, and adopted then: a look may come between."""
    agent = start()
    segment(agent)
    sampler = sampling.Sampler(lambda: [agent.pid], shared_mount.state)
    with monkeypatch.context() as early:
        early.setattr(Memory, "read", classmethod(lambda *_: None))
        sampler.look()
    sampler.look()
    (region,) = sampler.regions.values()
    assert (region.kind, region.given_name) == ("sysv", "System V private segment")


def test_a_segment_takes_the_place_of_a_region(
    start: Callable[..., Agent], shared_mount: Mount
) -> None:
    """SHM_REMAP over a window ends that attachment, as MAP_FIXED does; over a part it may not."""
    agent = start()
    path = str(shared_mount.path / "replaced")
    fd = agent.call("open", path, os.O_RDWR | os.O_CREAT, 0o600)
    agent.call("ftruncate", fd, SIZE)
    agent.call("mmap", PLACE, SIZE, READ_WRITE, SHARED | FIXED, fd, 0)
    half = agent.call("shmget", 0, QUANTUM, 0o600)
    whole = agent.call("shmget", 0, SIZE, 0o600)
    for made in (half, whole):
        result = agent.say("shmat", made, PLACE, 0o40000)
        assert result == ("EINVAL" if made == half else "0")
        agent.call("shmctl", made, 0, 0)
    assert agent.store(PLACE, 1) == "ok"
    agent.call("close", fd)
    agent.call("unlink", path)


def test_the_next_server_finds_it(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    mount = mounts("quantum=2M")
    agent = agents.start([agent_program], running.environment(mount.path, ALL))
    base, fd = segment(agent), memfd(agent)
    gone = mapped(agent, fd)
    agent.store(base, 1)
    assert len(look(mount, agent)) == 2
    mount.kill()
    agent.store(base + QUANTUM, 1)
    agent.call("munmap", gone, SIZE)
    agent.call("close", fd)
    mount.start()
    (region,) = look(mount, agent)
    assert (region.clients, region.rss_bytes) == (1, 2 * PAGE)
    mount.stop()
    assert agent.load(base) == "1"
