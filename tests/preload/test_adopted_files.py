"""Files mapped MAP_SHARED that are adopted: for the program they are files as ever.

Each row is done on Linux alone first, which must answer as the row says, and then by a program
whose files are adopted. What is known of them is seen in page tables only: nobody opens the file.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab import sampling
from msharefs.launch import running
from msharefs.server import describe
from msharefs.server.memory import Memory
from msharefs.server.view import View

from .conftest import FIXED, PAGE, PLACE, PRIVATE, QUANTUM, READ, READ_WRITE, SHARED
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.agent import Agent, Agents
    from support.server import Mount

LEAST = 1 << 20
SIZE = 2 * QUANTUM
TABLE, UPPER = 4096, 3 * 4096
HUGE = QUANTUM // PAGE
SETLEASE, GETLEASE, WRITE_LEASE = 1024, 1025, 1
PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_numbers = itertools.count()


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A directory that is not in memory, as /tmp may be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def start(
    agents: Agents, agent_program: Path, shared_mount: Mount, tmp_path: Path
) -> Iterator[Callable[..., Agent]]:
    """Start an agent; by default one that adopts files of 1 MiB and more.

    What it says is in `said`.
    """

    def run(*, adopts: bool = True) -> Agent:
        environ = running.environment(shared_mount.path, {"file": LEAST}) if adopts else None
        command = ["sh", "-c", f'exec "$0" "$1" 2>>{tmp_path}/said', agent_program]
        return agents.start(command, environ)

    (tmp_path / "said").touch()
    yield run
    agents.clean()
    until(lambda: not look(shared_mount), "no region left")
    assert not (tmp_path / "said").read_text()


def look(mount: Mount, *agents: Agent) -> list[sampling.Region]:
    """The regions with the entries they have now."""
    sampler = sampling.Sampler(lambda: [agent.pid for agent in agents], mount.state)
    sampler.look()
    return list(sampler.regions.values())


class File:
    """A new file, open in an agent."""

    def __init__(self, agent: Agent, directory: Path, size: int = SIZE) -> None:
        self.agent = agent
        self.path = str(directory / f"file{next(_numbers)}")
        self.fd = self.open(agent)
        assert agent.call("ftruncate", self.fd, size) == 0

    def open(self, agent: Agent, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        return agent.call("open", self.path, flags, 0o600)

    def map(
        self,
        agent: Agent | None = None,
        size: int = SIZE,
        *,
        at: int = 0,
        prot: int = READ_WRITE,
        flags: int = SHARED,
        offset: int = 0,
        fd: int | None = None,
    ) -> int:
        flags |= FIXED if at else 0
        fd = self.fd if fd is None else fd
        return (agent or self.agent).call("mmap", at, size, prot, flags, fd, offset)

    def read(self, at: int) -> int:
        """A byte of it, by us."""
        with open(self.path, "rb") as file:
            file.seek(at)
            return file.read(1)[0]


def stores_reach_the_file(file: File) -> Any:
    agent, base = file.agent, file.map()
    agent.store(base + PAGE, 7)
    agent.store(base + SIZE - 1, 8)
    synced = agent.say("msync", base, SIZE, 4)
    return synced, file.read(PAGE), file.read(SIZE - 1), file.read(0), os.stat(file.path).st_size


def writes_reach_the_mapping(file: File) -> Any:
    agent, base = file.agent, file.map()
    before = agent.load(base + PAGE)
    with open(file.path, "r+b") as other:
        other.seek(PAGE)
        other.write(b"\x05")
    agent.put(agent.pool, b"\x06")
    written = agent.call("pwrite64", file.fd, agent.pool, 1, 2 * PAGE)
    return before, agent.load(base + PAGE), written, agent.load(base + 2 * PAGE)


def shorter_and_longer(file: File) -> Any:
    agent, base = file.agent, file.map()
    agent.store(base, 1)
    agent.store(base + QUANTUM, 2)
    found = [agent.call("ftruncate", file.fd, QUANTUM), agent.load(base + QUANTUM)]
    found += [agent.store(base + SIZE - 1, 1), agent.load(base)]
    found += [agent.call("ftruncate", file.fd, 2 * SIZE), agent.load(base + QUANTUM)]
    beyond = file.map(size=2 * SIZE)
    found += [agent.store(beyond + 2 * SIZE - 1, 3), agent.load(beyond)]
    return found, os.stat(file.path).st_size


def the_end_within_a_page(file: File) -> Any:
    agent = file.agent
    agent.call("ftruncate", file.fd, QUANTUM + 1)
    base = file.map()
    return agent.store(base + QUANTUM + 9, 1), agent.load(base + QUANTUM + PAGE), file.read(QUANTUM)


def a_hole_is_punched(file: File) -> Any:
    agent, base = file.agent, file.map()
    agent.store(base + PAGE, 4)
    by_file = agent.call("fallocate", file.fd, PUNCH, PAGE, PAGE)
    first = agent.load(base + PAGE)
    agent.store(base + PAGE, 4)
    return by_file, first, agent.say("madvise", base + PAGE, PAGE, 9), agent.load(base + PAGE)


def rights(file: File) -> Any:
    agent = file.agent
    fd = file.open(agent, os.O_RDONLY)
    refused = agent.say("mmap", 0, SIZE, READ_WRITE, SHARED, fd, 0)
    base = file.map(prot=READ, fd=fd)
    never = agent.say("mprotect", base, PAGE, READ_WRITE)
    later = file.map(prot=READ)
    stored = agent.store(later, 1)
    return (
        refused,
        never,
        agent.store(base, 1),
        stored,
        agent.say("mprotect", later, PAGE, READ_WRITE),
        agent.store(later, 1),
        agent.load(base),
    )


def it_is_nobody_elses_business(file: File) -> Any:
    """Nobody opens it: it can be leased, and its file system be left."""
    agent, base = file.agent, file.map()
    agent.store(base, 1)
    leased = agent.call("fcntl", file.fd, SETLEASE, WRITE_LEASE)
    return leased, agent.call("fcntl", file.fd, GETLEASE, 0)


def unlinked(file: File) -> Any:
    agent, base = file.agent, file.map()
    os.unlink(file.path)
    agent.call("close", file.fd)
    return agent.store(base + PAGE, 9), agent.load(base + PAGE), os.path.exists(file.path)


def forked(file: File) -> Any:
    agent, base = file.agent, file.map()
    child = agent.fork()
    child.store(base, 3)
    seen = agent.load(base)
    child.exit()
    return seen, agent.load(base), file.read(0)


def parts_and_moves(file: File) -> Any:
    agent, base = file.agent, file.map(at=PLACE)
    agent.store(base + QUANTUM, 6)
    half = file.map(size=QUANTUM, offset=QUANTUM)
    found = [agent.load(half), agent.call("munmap", base, QUANTUM), agent.load(base)]
    found += [agent.load(base + QUANTUM)]
    moved = agent.call("mremap", half, QUANTUM, QUANTUM, 3, PLACE + 2 * SIZE)
    return found, moved == PLACE + 2 * SIZE, agent.load(moved), agent.load(half)


ROWS: dict[str, tuple[Callable[[File], Any], Any]] = {
    "stores reach the file": (stores_reach_the_file, ("0", 7, 8, 0, SIZE)),
    "writes reach the mapping": (writes_reach_the_mapping, ("0", "5", 1, "6")),
    "shorter and longer": (
        shorter_and_longer,
        ([0, "SIGBUS ADRERR", "SIGBUS ADRERR", "1", 0, "0", "ok", "1"], 2 * SIZE),
    ),
    "the end within a page": (the_end_within_a_page, ("ok", "SIGBUS ADRERR", 0)),
    "a hole is punched": (a_hole_is_punched, (0, "0", "0", "0")),
    "rights": (
        rights, ("EACCES", "EACCES", "SIGSEGV ACCERR", "SIGSEGV ACCERR", "0", "ok", "1"),
    ),
    "it is nobody else's business": (it_is_nobody_elses_business, (0, WRITE_LEASE)),
    "unlinked": (unlinked, ("ok", "9", False)),
    "forked": (forked, ("3", "3", 3)),
    "parts and moves": (parts_and_moves, (["6", 0, "SIGSEGV MAPERR", "6"], True, "6",
                                          "SIGSEGV MAPERR")),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_it_does_what_linux_does(
    start: Callable[..., Agent], shared_mount: Mount, disk: Path, row: str
) -> None:
    do, expected = ROWS[row]
    assert do(File(start(adopts=False), disk)) == expected
    agent = start()
    assert do(File(agent, disk)) == expected
    assert [region.kind for region in look(shared_mount, agent)] == ["file"]


class TestItsPages:
    def test_are_those_that_somebody_has_mapped(
        self, start: Callable[..., Agent], shared_mount: Mount, disk: Path
    ) -> None:
        """Not those of the page cache, nor those of a private mapping."""
        one, other = start(), start()
        file = File(one, disk)
        with open(file.path, "r+b") as written:
            written.write(bytes(SIZE))  # the page cache has all
        mine = file.map(at=PLACE)
        fd = file.open(other)
        yours = file.map(other, fd=fd, at=PLACE)
        copy = file.map(other, fd=fd, flags=PRIVATE)
        (region,) = look(shared_mount, one, other)
        assert (region.rss_bytes, region.clients, region.page_table_bytes) == (0, 2, TABLE)
        one.load(mine)
        other.load(yours + QUANTUM)
        other.load(copy + QUANTUM // 2)
        (region,) = look(shared_mount, one, other)
        held = sum(len(pages(agent, base)) for agent, base in ((one, mine), (other, yours)))
        assert region.rss_bytes == held * PAGE
        assert region.given_name == file.path

    def test_go_when_they_are_unmapped(
        self, start: Callable[..., Agent], shared_mount: Mount, disk: Path
    ) -> None:
        agent = start()
        file = File(agent, disk)
        base = file.map(at=PLACE)
        agent.store(base, 1)
        agent.store(base + QUANTUM, 1)
        (region,) = look(shared_mount, agent)
        assert region.rss_bytes == len(pages(agent, base)) * PAGE >= 2 * PAGE
        agent.call("ftruncate", file.fd, QUANTUM)
        agent.call("madvise", base, PAGE, 4)
        (region,) = look(shared_mount, agent)
        assert region.rss_bytes == len(pages(agent, base)) * PAGE
        agent.call("ftruncate", file.fd, 0)
        (region,) = look(shared_mount, agent)
        assert (region.rss_bytes, region.clients) == (0, 1)
        assert audit(shared_mount)["leaves"] == 0

    def test_of_two_megabytes_have_no_table(
        self, start: Callable[..., Agent], shared_mount: Mount, disk: Path
    ) -> None:
        """A table is where one process has them one by one."""
        agent = start()
        file = File(agent, disk)
        base = file.map(at=PLACE)
        for at in range(0, SIZE, PAGE):
            agent.store(base + at, 1)
        (region,) = look(shared_mount, agent)
        found = pages(agent, base)
        tables = len({number // HUGE for number, huge in found.items() if not huge})
        assert region.page_table_bytes - UPPER in (tables * TABLE, tables * TABLE + TABLE)
        assert region.own_tables_bytes + region.upper_tables_bytes == (tables + 2) * TABLE
        assert region.rss_bytes == SIZE
        found = audit(shared_mount)
        assert not found["bad"] + found["stray"] + found["lost"] + found["held"]


def pages(agent: Agent, base: int) -> dict[int, bool]:
    """The pages that a process has of a file, by number, and whether each is of a huge one."""
    from msharefs.lab.pagemap import HUGE as WHOLE
    from msharefs.lab.pagemap import Pagemap

    with Pagemap(agent.pid) as table:
        return {
            number: bool(what & WHOLE)
            for runs in table.runs(base, base + SIZE)
            for low, high, what in runs.tolist()
            for number in range((low - base) // PAGE, (high - base) // PAGE)
        }


def audit(mount: Mount) -> dict[str, Any]:
    (path,) = (mount.state / "regions").glob("*.mm")
    with View("it", path.parent, int(path.stem)) as view:
        return dict(describe.audit(view))


def test_its_region_goes_with_the_last_mapping(
    start: Callable[..., Agent], shared_mount: Mount, disk: Path
) -> None:
    """The file may stay for ever; and what is mapped anew is a region again."""
    agent = start()
    file = File(agent, disk)
    base = file.map()
    child = agent.fork()
    agent.call("munmap", base, SIZE)
    assert len(look(shared_mount, agent, child)) == 1
    child.exit()
    assert not look(shared_mount, agent)
    base = file.map()
    agent.store(base, 1)
    (region,) = look(shared_mount, agent)
    assert (region.clients, region.faults > 0) == (1, True)


def test_one_that_has_grown_is_one_region(
    start: Callable[..., Agent], shared_mount: Mount, disk: Path
) -> None:
    agent = start()
    file = File(agent, disk, QUANTUM)
    first = file.map(size=QUANTUM)
    agent.call("ftruncate", file.fd, SIZE)
    agent.store(file.map() + QUANTUM, 1)
    agent.store(first, 1)
    (region,) = look(shared_mount, agent)
    assert (region.mapped_bytes, region.clients) == (SIZE, 1)


def test_the_next_server_finds_it(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path, disk: Path
) -> None:
    mount = mounts("quantum=2M")
    agent = agents.start([agent_program], running.environment(mount.path, {"file": LEAST}))
    file, gone = File(agent, disk), File(agent, disk)
    base, other = file.map(at=PLACE), gone.map()
    agent.store(base, 1)
    mount.kill()
    agent.call("munmap", other, SIZE)
    mount.start()
    (region,) = look(mount, agent)
    assert (region.given_name, region.clients) == (file.path, 1)
    assert region.rss_bytes == len(pages(agent, base)) * PAGE
    records = (Memory.read(path) for path in (mount.state / "regions").glob("*.adopted"))
    assert [record.kind for record in records if record] == ["file"]
    mount.stop()
    assert agent.load(base) == "1"
