"""Adopted memory: what programs under ``msharefs run --adopt`` share with their children.

It is a memfd, which they have mapped as they would have mapped Linux's own shared memory, and for
which they need nobody: no userfaultfd, no slot, no connection. So all that we know of it is seen
from outside. A page that it has is an entry of its region; a process that maps it is a client.
Or it is an object of Linux's own (existing.py), of which we have nothing but its handle.

We keep one descriptor of each, to look at its pages. Linux says when the last mapping is gone
(inotify(7): a file that was open for writing is closed with its last mapping), and a lease
(F_SETLEASE) says whether that is so. `.mem` in the region's directory leads to the descriptor.
For the next server a file beside it has the memory's handle, by which root finds it as long as it
is mapped. Another user's server cannot find it again: the memory lives on, and is no region.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING

import trio

from msharefs import proc
from msharefs.native import ffi, lib

from .files import SEALS, adopted_path, object_paths, remove_objects
from .identity import look
from .memory import FILE, MFD_NOEXEC_SEAL, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_EVENTS = 4096  # bytes


class Adopted:
    """The adopted memory of a mount, by the numbers of its regions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: dict[int, int] = {}
        self._existing: dict[int, Memory] = {}
        """Objects of Linux's own, which live as long as it says."""
        self._told: Counter[int] = Counter()
        """How often we were told of a file's region that a process has mapped it."""
        self._unmapped: set[int] = set()
        """The regions of files that no process maps any more."""
        self._watches: dict[int, int] = {}
        """The regions by the numbers of their inotify watches."""
        self._inotify = lib.inotify_init1(lib.IN_CLOEXEC | lib.IN_NONBLOCK)
        if self._inotify < 0:  # fs.inotify.max_user_instances
            log.warning("the end of adopted memory is noticed late: %s", os.strerror(ffi.errno))

    def close(self) -> None:
        """Lets go of all; the memory lives on with the processes that map it."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._inotify >= 0:
            os.close(self._inotify)

    async def run(self, unused: Callable[[int], None]) -> None:
        """Calls `unused` when the last mapping of a region's memory may have gone."""
        while self._inotify >= 0:
            await trio.lowlevel.wait_readable(self._inotify)
            for watch in _watches(os.read(self._inotify, _EVENTS)):
                if watch in self._watches:
                    unused(self._watches[watch])

    def make(self, ident: int, size: int) -> int:
        """Memory for a region: a descriptor to map it by, for the caller to close."""
        made = os.memfd_create(f"{ident}.mem", os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)
        try:
            os.ftruncate(made, size)
            # A process that was given it could otherwise make it shorter.
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, SEALS)
            # Others than this one: what they open for writing counts, and is watched.
            self._keep(ident, os.open(proc.fd_path(made), os.O_RDONLY | os.O_CLOEXEC))
            return os.open(proc.fd_path(made), os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(made)

    def find(self) -> None:
        """Finds the memory of an earlier server's regions; removes those whose memory is gone.

        All of them where this server may not: only root may open a file by its handle.
        """
        lost = 0
        for name in os.listdir(self._directory):
            number, _, kind = name.partition(".")
            if kind != "adopted":
                continue
            ident = int(number)
            try:
                self._find(ident)
            except OSError as error:
                lost += error.errno != errno.ESTALE
                remove_objects(self._directory, ident)
        if lost:
            log.warning(
                "%d regions of adopted memory cannot be found again, and are not shown any more: "
                "only root's server can do that; the programs keep their memory",
                lost,
            )

    def _find(self, ident: int) -> None:
        memory = Memory.read(adopted_path(self._directory, ident))
        if memory is None:
            raise OSError(errno.ESTALE, "its record is lost")
        fd = memory.open()
        if memory.held:
            self._keep(ident, fd)
        else:
            os.close(fd)
            self._existing[ident] = memory

    def add(self, ident: int, memory: Memory) -> None:
        """An object of Linux's own is a region's memory from now on."""
        memory.write(adopted_path(self._directory, ident))
        self._existing[ident] = memory
        self.mapped(ident)

    def mapped(self, ident: int) -> None:
        """We are told that a process has mapped an object of Linux's own."""
        self._told[ident] += 1
        self._unmapped.discard(ident)

    def files(self) -> dict[int, tuple[int, int, int]]:
        """The regions of files: device and inode in /proc/PID/maps, and how often we were told."""
        return {
            ident: (memory.device, memory.inode, self._told[ident])
            for ident, memory in self._existing.items()
            if memory.kind == FILE
        }

    def unmapped(self, ident: int, told: int) -> None:
        """A look that began when we were `told` so often has found nobody who maps a file."""
        if self._told[ident] == told:
            self._unmapped.add(ident)

    def of(self, memory: Memory) -> int | None:
        """The region of an object of Linux's own."""
        same = (ident for ident, other in self._existing.items() if other.is_same(memory))
        return next(same, None)

    def _keep(self, ident: int, fd: int) -> None:
        """`fd` is the memory of a region from now on, and ours."""
        self._fds[ident] = fd
        path = proc.fd_path(fd)
        watch = lib.inotify_add_watch(self._inotify, os.fsencode(path), lib.IN_CLOSE_WRITE)
        self._watches[watch] = ident  # if there is none, a look every few seconds tells
        Memory(look(fd).identity.handle).write(adopted_path(self._directory, ident))
        _, memory = object_paths(self._directory, ident)
        beside = memory.with_suffix(".new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(proc.fd_path(fd, os.getpid()))
        beside.replace(memory)

    def has(self, ident: int) -> bool:
        """Whether that region's memory is adopted."""
        return ident in self._fds or self.exists(ident)

    def exists(self, ident: int) -> bool:
        """Whether it is an object of Linux's own."""
        return ident in self._existing

    def is_file(self, ident: int) -> bool:
        """Whether it is a file on disk."""
        return ident in self._existing and self._existing[ident].kind == FILE

    def in_use(self, ident: int) -> bool:
        """Whether a process has a region's memory mapped, or is about to map it.

        Of an object of Linux's own: whether there is one still. We must not have it open.
        """
        if ident in self._existing:
            return self._lives(ident)
        fd = self._fds.get(ident)
        if fd is None:
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # EAGAIN: it is open for writing
        except BlockingIOError:
            return True
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def _lives(self, ident: int) -> bool:
        if self._existing[ident].kind == FILE:
            return ident not in self._unmapped
        with contextlib.suppress(OSError):
            os.close(self._existing[ident].open())
            return True
        return False

    def used(self) -> list[int]:
        """The regions with memory of ours that is in use."""
        return [ident for ident in self._fds if self.in_use(ident)]

    def identity(self, ident: int) -> tuple[int, int]:
        """st_dev and st_ino of a region's memory."""
        status = os.fstat(self._fds[ident])
        return status.st_dev, status.st_ino

    def forget(self, ident: int) -> None:
        """The region is gone: its memory goes back."""
        self._existing.pop(ident, None)
        self._told.pop(ident, None)
        self._unmapped.discard(ident)
        fd = self._fds.pop(ident, None)
        if fd is None:
            return
        for watch in [each for each, other in self._watches.items() if other == ident]:
            del self._watches[watch]
            lib.inotify_rm_watch(self._inotify, watch)
        os.close(fd)


def _watches(events: bytes) -> Iterator[int]:
    """The numbers of the watches in a read(2) of an inotify descriptor."""
    size = ffi.sizeof("struct inotify_event")
    for at in range(0, len(events), size):  # files have no names in their own events
        yield int(ffi.from_buffer("struct inotify_event *", events[at : at + size]).wd)
