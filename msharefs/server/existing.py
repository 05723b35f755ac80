"""Adopting memory that Linux has made: System V segments, memfds, shm_open's files, other files.

A program maps it as ever, and tells us where (ADOPT_COMMAND). Nothing changes for the program: we
only look at the object from outside, as at memory of our own that is adopted, and a process that
maps it is a client of its region. We find the object in the caller's /proc/PID/map_files, for which
it takes CAP_CHECKPOINT_RESTORE.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import trio

from msharefs import proc, processes, verbs
from msharefs.mountpoint import ADOPT_STRUCT
from msharefs.native import lib

from . import memory as kinds
from . import seen
from .descriptors import elsewhere
from .identity import look
from .mapping import file_system
from .memory import Memory, nameless_device
from .tree import ROOT_INO

if TYPE_CHECKING:
    from .fuse import Caller
    from .options import MountOptions
    from .regions import Regions
    from .tree import Tree

_SEGMENT = re.compile(r"/SYSV([0-9a-f]{8})")
_TMPFS_MAGIC, _HUGETLBFS_MAGIC = 0x01021994, 0x958458F6  # linux/magic.h
_TEXT = 227  # bytes of a sentence in an answer


class Found(NamedTuple):
    """What a process has mapped."""

    memory: Memory
    size: int
    """Bytes of the object now."""


class Existing:
    """What programs tell us of their memory."""

    def __init__(self, tree: Tree, regions: Regions, options: MountOptions) -> None:
        self._tree = tree
        self._regions = regions
        self._options = options
        self._one = trio.Lock()
        self._names = count()

    async def answer(self, data: bytes, caller: Caller) -> bytes:
        """Answers ADOPT_COMMAND."""
        start, end, offset, _, _ = ADOPT_STRUCT.unpack(data)
        result, text = 0, ""
        try:
            await self._adopt(caller, start, end, offset)
        except OSError as error:
            result, text = -(error.errno or errno.EIO), error.strerror or ""
        # A sentence is cut between characters, not in the middle of one.
        cut = os.fsencode(text)[:_TEXT].decode(errors="ignore").encode()
        return ADOPT_STRUCT.pack(start, end, offset, result, cut)

    async def _adopt(self, caller: Caller, start: int, end: int, offset: int) -> None:
        """ESRCH: we do not see the caller. EPERM: it takes root. EOPNOTSUPP: not such memory."""
        if self._options.budget:
            raise OSError(errno.EOPNOTSUPP, "the mount has a budget, and Linux makes this memory")
        pid = processes.process_of(caller.pid) if caller.pid else 0
        if not pid:
            raise OSError(errno.ESRCH, "the server does not see the process: is it a container's?")
        found = await elsewhere(lambda: look_at(pid, start, end), f"process {pid}", user=caller.uid)
        size = max(verbs.page_up(found.size), verbs.page_up(offset + end - start))
        if not 0 < size <= lib.HOST_END - lib.HOST_BASE:
            raise OSError(errno.EFBIG, f"{size} bytes are more than a region can have")
        async with self._one:
            if self._regions.existing(found.memory, size) is None:
                await self._make(found.memory, size, caller, pid)

    async def _make(self, memory: Memory, size: int, caller: Caller, pid: int) -> None:
        """A region without a name, for this memory."""
        name = b".existing-%d-%d" % (os.getpid(), next(self._names))
        user, group = os.geteuid(), os.getegid()
        entry, _ = self._tree.create(ROOT_INO, name, 0o600, user, group, exclusive=True)
        try:
            ident = self._tree.node(entry.ino).ident
            self._regions.create(ident, caller.pid, caller.uid)
            try:
                quantum = self._options.quantum
                await self._regions.set_size(ident, -(-size // quantum) * quantum)
                flags = verbs.MAP_SHARED | verbs.MAP_FIXED | verbs.MAP_ANONYMOUS
                prot = lib.VMA_READ | lib.VMA_WRITE
                create = verbs.Create(0, size, 0, prot, flags | verbs.MAP_NORESERVE)
                region = self._regions.find(ident)
                await region.create_mapping(create, os.O_RDWR, pid, caller.uid)
                if memory.kind == kinds.FILE:
                    await region.sized().flag(0, size, 0, lib.VMA_HUGEPAGE)
                self._regions.adopt_existing(ident, memory)
            finally:
                await self._regions.evict(ident)  # it goes at once if it has no such memory
        finally:
            self._tree.unlink(ROOT_INO, name)
            self._tree.forget(entry.ino, 1)


def look_at(pid: int, start: int, end: int) -> Found:
    """What process `pid` has mapped at [start, end). For a thread: it may keep us waiting."""
    fd = _open(pid, start, end)
    try:
        path = os.readlink(proc.fd_path(fd))
        kind, name = _kind(fd, path)
        if kind == kinds.FILE:
            return Found(_file(pid, start, name), os.fstat(fd).st_size)
        space = proc.ipc_namespace(pid) if kind == kinds.SYSV else 0
        identity = look(fd).identity
        found = Memory(identity.handle, kind, name, identity.device, space, held=False)
        os.close(found.open())  # as a look will: ESTALE, EPERM
        return Found(found, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _open(pid: int, start: int, end: int) -> int:
    """The file that is mapped there, as a path."""
    flags = os.O_PATH | os.O_CLOEXEC
    try:
        try:
            return os.open(proc.map_file(pid, start, end), flags)
        except FileNotFoundError:  # Linux has joined it with its neighbour
            for mapping in proc.maps(pid):
                if mapping.start <= start < mapping.end:
                    return os.open(proc.map_file(pid, mapping.start, mapping.end), flags)
            raise
    except PermissionError:
        raise OSError(
            errno.EPERM,
            "only root's server may look at memory that Linux has made: mount as root, or let root "
            "run the program",
        ) from None


def _kind(fd: int, path: str) -> tuple[str, str]:
    """The class of an object, and its name for people. EOPNOTSUPP: it is none that we look at."""
    status = os.fstat(fd)
    device = status.st_dev
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EOPNOTSUPP, f"{path}: a device is not memory")
    if device == nameless_device():
        segment = _SEGMENT.match(path)
        if segment is not None:
            key = segment[1].lstrip("0")
            return kinds.SYSV, f"System V key 0x{key}" if key else "System V private segment"
        name = path.removeprefix("/memfd:").removesuffix(" (deleted)")
        return (kinds.MEMFD, f"memfd {name}") if path.startswith("/memfd:") else (kinds.ANON, "")
    magic, _ = file_system(fd)
    if magic == _TMPFS_MAGIC:
        return kinds.SHM, path.removesuffix(" (deleted)")
    if magic == _HUGETLBFS_MAGIC:
        raise OSError(errno.EOPNOTSUPP, "of huge pages Linux shares the page tables itself")
    return kinds.FILE, path.removesuffix(" (deleted)")


def _file(pid: int, start: int, name: str) -> Memory:
    """A file that process `pid` has mapped at `start`: it has no other mark than that."""
    if not seen.can_look():
        raise OSError(
            errno.EOPNOTSUPP, f"{name}: which of its pages are mapped is told from Linux 6.7 on"
        )
    for one in proc.maps(pid, shared=True):
        if one.start <= start < one.end:
            return Memory("", kinds.FILE, name, one.device, held=False, inode=one.inode)
    raise OSError(errno.ENOENT, f"{name} is not mapped any more")
