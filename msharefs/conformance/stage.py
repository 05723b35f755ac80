"""What a row's check works with: a directory of its own, processes, region files, memory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from msharefs import proc

from . import by_call
from .world import SkippedError, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .agent import Agent, Agents, Argument

PAGE = 4096
HUGE = 2 << 20
Q = 512 << 30

NONE, READ, WRITE, EXEC = 0, 1, 2, 4
RW = READ | WRITE
SHARED, PRIVATE, VALIDATE = 0x01, 0x02, 0x03
FIXED, ANON, GROWSDOWN, LOCKED, NORESERVE = 0x10, 0x20, 0x100, 0x2000, 0x4000
POPULATE, HUGETLB, NOREPLACE = 0x8000, 0x40000, 0x100000
SHARED_FIXED = SHARED | FIXED

CREATE, UNMAP = 0x40287800, 0x40107801
UNKNOWN = 0x40047863  # _IOW('x', 0x63, int)
SYS_MSEAL = 462
_CREATE = struct.Struct("=QQQIII4x")
_WRAP = (1 << 64) - 1

# Names of equal numbers that the C library prefers.
_ERRNO_NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN"}


def _has_pku() -> bool:
    """Whether this processor has protection keys."""
    with open("/proc/cpuinfo") as text:
        return any(line.startswith("flags") and "ospke" in line.split() for line in text)


HAS_PKU = _has_pku()


def errno_name(error: OSError) -> str:
    """The name of an errno."""
    number = error.errno or 0
    return _ERRNO_NAMES.get(number) or errno.errorcode.get(number, str(number))


def said(work: Callable[[], object]) -> str:
    """ "0" if `work` succeeds, or the name of its errno."""
    try:
        work()
    except OSError as error:
        return errno_name(error)
    return "0"


def create_bytes(
    offset: int, size: int, prot: int, flags: int, fd: int = -1, fd_offset: int = 0
) -> bytes:
    """Struct mshare_create."""
    return _CREATE.pack(
        offset & _WRAP, size & _WRAP, fd_offset & _WRAP,
        prot & 0xFFFFFFFF, flags & 0xFFFFFFFF, fd & 0xFFFFFFFF,
    )  # fmt: skip


def unmap_bytes(offset: int, size: int) -> bytes:
    """Struct mshare_unmap."""
    return struct.pack("=QQ", offset & _WRAP, size & _WRAP)


@dataclass
class File:
    """An open file of a process."""

    agent: Agent
    fd: int
    path: str

    def say(self, function: str, *arguments: Argument) -> str:
        """Calls `function(fd, ...)`: "0" or the name of its errno."""
        return self.agent.say(function, self.fd, *arguments)

    def call(self, function: str, *arguments: Argument) -> int:
        """Calls `function(fd, ...)`, which must succeed."""
        return self.agent.call(function, self.fd, *arguments)

    def size_to(self, size: int) -> str:
        """ftruncate(2)."""
        return self.say("ftruncate", size)

    def size(self) -> int:
        """st_size."""
        return os.stat(self.path).st_size

    def create(
        self, offset: int = 0, size: int = PAGE, prot: int = RW,
        flags: int = SHARED_FIXED | ANON, fd: int = -1, fd_offset: int = 0,
    ) -> str:  # fmt: skip
        """MSHAREFS_CREATE_MAPPING, or mshare_map()."""
        if self.agent.by_call:
            return self.say("mshare_map", offset, size, prot, flags, fd, fd_offset)
        return self.say("ioctl", CREATE, create_bytes(offset, size, prot, flags, fd, fd_offset))

    def unmap(self, offset: int = 0, size: int = PAGE) -> str:
        """MSHAREFS_UNMAP, or mshare_unmap()."""
        if self.agent.by_call:
            return self.say("mshare_unmap", offset, size)
        return self.say("ioctl", UNMAP, unmap_bytes(offset, size))

    def mmap(
        self, length: int = Q, prot: int = RW, flags: int = SHARED, addr: int = 0, offset: int = 0
    ) -> str:
        """mmap(2) of the file, or mshare_attach(): "0" or the name of its errno."""
        return said(lambda: self.attach(length, prot, flags, addr, offset))

    def attach(
        self, length: int = Q, prot: int = RW, flags: int = SHARED, addr: int = 0, offset: int = 0
    ) -> int:
        """mmap(2) of the file, or mshare_attach(), which must succeed: the address."""
        if self.agent.by_library:
            return by_call.attach(self.agent, self.fd, offset, length, prot, flags, addr)
        return self.agent.call("mmap", addr, length, prot, flags, self.fd, offset)

    def detach(self, base: int) -> None:
        """munmap(2) of an attachment, or mshare_detach()."""
        if self.agent.by_library:
            self.agent.call("mshare_detach", base)
        else:
            self.agent.call("munmap", base, Q)

    def unlink(self) -> str:
        """unlink(2) of its name."""
        return self.agent.say("unlink", self.path)

    def by(self, agent: Agent, flags: int = os.O_RDWR) -> File:
        """The file, opened by another process."""
        return File(agent, agent.call("open", self.path, flags), self.path)


class Memory:
    """A range of a process's addresses, of Q bytes, with objects and holes in it.

    It is an attached region, or on plain Linux a memfd, the objects of which are mapped one by one.
    """

    def __init__(self, stage: Stage, file: File, base: int) -> None:
        self.stage = stage
        self.file = file
        self.base = base
        self._objects: list[tuple[int, int, int]] = []

    @property
    def agent(self) -> Agent:
        """The process."""
        return self.file.agent

    def map(self, offset: int = 0, size: int = PAGE, prot: int = RW) -> str:
        """Anonymous memory at `offset`."""
        if not self.stage.plain:
            return self.file.create(offset, size, prot)
        self._objects.append((offset, size, prot))
        flags = SHARED_FIXED | NORESERVE
        return self.agent.say("mmap", self.base + offset, size, prot, flags, self.file.fd, offset)

    def unmap(self, offset: int = 0, size: int = PAGE) -> str:
        """A hole at `offset`, and its memory goes back."""
        if not self.stage.plain:
            return self.file.unmap(offset, size)
        self.file.call("fallocate", 3, offset, size)  # PUNCH_HOLE | KEEP_SIZE
        return self.agent.say("munmap", self.base + offset, size)

    def say(self, function: str, offset: int, size: int, *arguments: Argument) -> str:
        """A call on a range of it, `function(address, size, ...)`; or what that is for a region."""
        if function == "mseal" and self.agent.by_library and not self.agent.by_call:
            # It is newer than the C library.
            return self.agent.say("syscall", SYS_MSEAL, self.base + offset, size, *arguments)
        if not self.agent.by_call:
            return self.agent.say(function, self.base + offset, size, *arguments)
        if (function, offset, size) == ("munmap", 0, Q):
            return self.agent.say("mshare_detach", self.base)
        return by_call.say(self.agent, self.file.fd, offset, size, function, *arguments)

    def lines(self) -> list[proc.Mapping]:
        """The lines of /proc/PID/maps inside it."""
        end = self.base + Q
        return [
            each for each in proc.maps(self.agent.pid) if each.start < end and each.end > self.base
        ]

    def load(self, offset: int = 0) -> str:
        """What reading a byte gives, or the signal."""
        return self.agent.load(self.base + offset)

    def store(self, offset: int = 0, byte: int = 7) -> str:
        """What writing a byte gives: "ok" or the signal."""
        return self.agent.store(self.base + offset, byte)

    def at(self, agent: Agent) -> Memory:
        """The same addresses in a child."""
        return Memory(self.stage, File(agent, self.file.fd, self.file.path), self.base)

    def again(self, agent: Agent, prot: int = RW) -> Memory:
        """The same memory in another process, wherever it comes to lie.

        `prot` is the attachment's.
        """
        if not self.stage.plain:
            file = self.file.by(agent)
            return Memory(self.stage, file, file.attach(prot=prot))
        file = self.file.by(agent)
        other = Memory(self.stage, file, _free_range(agent))
        for offset, size, each in self._objects:
            assert other.map(offset, size, each) == "0"
        return other


class Stage:
    """One row's own: removed when the row is done."""

    def __init__(self, world: World, directory: Path, elsewhere: Path, zygote: Agent) -> None:
        self.world = world
        self.dir = directory
        self.elsewhere = elsewhere
        """A directory on another file system."""
        self._zygote = zygote

    @property
    def plain(self) -> bool:
        """This is Linux without us."""
        return self.world is World.PLAIN

    @cached_property
    def agent(self) -> Agent:
        """A fresh process."""
        return self.process()

    def process(self) -> Agent:
        """One more fresh process."""
        return self._zygote.fork()

    def user(self, uid: int = 65534) -> Agent:
        """A fresh process of another user."""
        agent = self.process()
        agent.call("setgroups", 0, 0)
        agent.call("setresgid", uid, uid, uid)
        agent.call("setresuid", uid, uid, uid)
        return agent

    def path(self, name: str = "r") -> str:
        """A path in the row's directory."""
        return str(self.dir / name)

    def open(
        self, name: str = "r", flags: int = os.O_RDWR, mode: int = 0o600, agent: Agent | None = None
    ) -> File:
        """Opens a file of the row's directory."""
        agent = agent or self.agent
        path = self.path(name)
        return File(agent, agent.call("open", path, flags, mode), path)

    def unsized(self, name: str = "r", agent: Agent | None = None, mode: int = 0o600) -> File:
        """A new region without a size."""
        return self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, agent)

    def region(
        self, size: int = Q, name: str = "r", agent: Agent | None = None, mode: int = 0o600
    ) -> File:
        """A new region of `size` bytes, nothing mapped in it."""
        file = self.unsized(name, agent, mode)
        file.call("ftruncate", size)
        return file

    def memory(self, *objects: tuple[int, int, int], name: str = "r") -> Memory:
        """An attached region; `objects` are offset, size and protection of what is in it."""
        if self.plain:
            path = f"/proc/{self.agent.pid}/fd/"
            fd = self.agent.call("memfd_create", "plain", 0)
            self.agent.call("ftruncate", fd, Q)
            memory = Memory(self, File(self.agent, fd, f"{path}{fd}"), _free_range(self.agent))
        else:
            file = self.region(name=name)
            memory = Memory(self, file, file.attach())
        for each in objects:
            found = memory.map(*each)
            assert found == "0", found
        return memory

    def page(self, prot: int = RW) -> Memory:
        """Memory of one page at offset 0."""
        return self.memory((0, PAGE, prot))

    def memory_used(self) -> int:
        """Bytes in use where the mount has its memory; here of the whole machine."""
        return proc.meminfo()["Shmem"]

    def mounted_by(self, name: str) -> str:
        """The uid of a name in the tree of a server of user 1000."""
        raise SkippedError(f"{name or 'the root'} of a mount of another user")


Check = Callable[[Stage], str]
"""Asks a question on a stage: the answer."""


def on_page(ask: Callable[[Memory], str]) -> Check:
    """A check of memory of one page."""
    return lambda stage: ask(stage.page())


def _free_range(agent: Agent) -> int:
    """An address, a multiple of Q, with nothing for Q bytes."""
    flags = PRIVATE | ANON | NORESERVE
    got = agent.call("mmap", 0, 2 * Q, NONE, flags, -1, 0)
    agent.call("munmap", got, 2 * Q)
    return -(-got // Q) * Q


@contextlib.contextmanager
def cleared(stage: Stage, agents: Agents, zygote: Agent) -> Iterator[Stage]:
    """The stage with its directory, which is removed when the row is done."""
    stage.dir.mkdir(mode=0o777)
    stage.dir.chmod(0o777)  # whatever our umask is
    try:
        yield stage
    finally:
        agents.clean(keep=[zygote])
        shutil.rmtree(stage.dir)
        for left in stage.elsewhere.iterdir():
            left.unlink()
