"""What adopted memory is: an object that processes map without us.

Either we have made it, and hold it (adopted.py), or the program has it from Linux, as a System V
segment is: then nobody but Linux says how long it lives, so we hold nothing. Root finds an object
by its handle as long as there is one. A file on disk is not even looked at (seen.py): it is memory
as long as a process maps it.
"""

from __future__ import annotations

import errno
import functools
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from msharefs import proc
from msharefs.native import check, lib

if TYPE_CHECKING:
    from pathlib import Path

ANON, SYSV, MEMFD, SHM, FILE = "anon", "sysv", "memfd", "shm", "file"

MFD_NOEXEC_SEAL = 8  # linux/memfd.h, since Linux 6.3; the mode of the file, not of its memory


@dataclass(frozen=True)
class Memory:
    """The memory of a region, as the file `.adopted` beside its host mm tells of it."""

    handle: str
    """Type and bytes, in hexadecimal; empty: it has none."""
    kind: str = ANON
    name: str = ""
    """What people call it; empty of memory that only its program knows."""
    device: int = 0
    """st_dev of its file system; 0: that of memory without a name."""
    space: int = 0
    """The IPC namespace of a System V segment."""
    held: bool = True
    """We have made it, and have it open."""
    inode: int = 0
    """Of a file: as /proc/PID/maps shows it, and so is its `device`."""

    @classmethod
    def read(cls, path: Path) -> Memory | None:
        """The record in a file; None: there is none, or it says nothing."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Keeps it in a file."""
        path.write_text(json.dumps(asdict(self)))

    def open(self) -> int:
        """Opens it for reading, if it lives. ESTALE: it does not. EPERM: this user may not.

        A file is left alone: memory without a page takes its place.
        """
        if self.kind == FILE:
            return _nameless()
        kind, _, content = self.handle.partition(":")
        if not content:
            raise OSError(errno.ESTALE, "it has no handle")
        anywhere = _anchor(self.device)
        try:
            handle = bytes.fromhex(content)
            return check(
                lib.identity_open(anywhere, int(kind, 16), handle, len(handle)),
                "opening adopted memory by its handle",
            )
        finally:
            os.close(anywhere)

    def is_same(self, other: Memory) -> bool:
        """Whether it is the same object."""
        return (self.handle, self.device, self.inode) == (
            other.handle, other.device, other.inode,
        )  # fmt: skip

    def maps(self, mapping: proc.Mapping) -> bool:
        """Whether a mapping with its device and inode number is one of it.

        The number of a System V segment is its shmid, which another object may have. What is mapped
        MAP_PRIVATE is nobody else's.
        """
        segment = mapping.path.startswith("/SYSV")
        return mapping.prot[3] == "s" and segment == (self.kind == SYSV)


@functools.cache
def nameless_device() -> int:
    """st_dev of the file system that Linux has for memory without a name."""
    fd = _nameless()
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _nameless() -> int:
    return os.memfd_create("handle", os.MFD_CLOEXEC | MFD_NOEXEC_SEAL)


def _anchor(device: int) -> int:
    """A descriptor of something on a file system. ESTALE: it is not mounted here."""
    if device in (0, nameless_device()):
        return _nameless()
    for mount in proc.mounts():
        if mount.device == device:
            fd = os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if os.fstat(fd).st_dev == device:
                return fd
            os.close(fd)
    raise OSError(errno.ESTALE, "its file system is not mounted where the server is")
