"""What is mapped: objects, and the classes of memory that programs share."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msharefs import proc, units

if TYPE_CHECKING:
    from collections.abc import Iterable

# The classes. MAP_SHARED memory:
ANON = "anon"
SYSV = "sysv"
SHM = "shm"
FILE = "file"
HUGETLB = "hugetlb"
# MAP_PRIVATE memory that is the same page in several processes all the same:
UNWRITTEN = "unwritten"
RELRO = "relro"
FORKED = "forked"
SHARED = (ANON, SYSV, SHM, FILE, HUGETLB)
CLASSES = {
    ANON: "MAP_SHARED anonymous memory",
    SYSV: "System V shared memory",
    SHM: "memfd, shm_open, tmpfs",
    FILE: "files mapped MAP_SHARED",
    HUGETLB: "huge pages (hugetlbfs)",
    UNWRITTEN: "file pages mapped MAP_PRIVATE and never written (code, constants)",
    RELRO: "RELRO: private, written once, now read-only",
    FORKED: "private memory unchanged since fork",
}
"""In the order in which one is harder to share than the other: by what must be done for it."""

# What people call the shared memory of programs they know. The first word of the class's kind.
_KNOWN = {
    ("postgres", ANON): "shared_buffers",
    ("php-fpm", ANON): "opcache",
    ("apache2", ANON): "scoreboard or opcache",
    ("oracle", SYSV): "SGA",
    ("mariadbd", ANON): "buffer pool",
}
_KNOWN_AT_LEAST = 16 << 20
_MFD_HUGETLB, _MFD_HUGE_SHIFT = 4, 26
_SEGMENT = re.compile(r"/SYSV([0-9a-f]{8}) \(deleted\)")


class Key(NamedTuple):
    """What makes two mappings those of one object."""

    device: int
    inode: int
    space: int
    """The IPC namespace of a System V segment, whose inode is its shmid; otherwise 0."""
    private: bool
    name: str
    """Of memory that has no inode."""


@dataclass
class Object:
    """A file, a segment, or other memory that can be mapped by several processes."""

    key: Key
    kind: str
    """One of `CLASSES`."""
    path: str
    huge: int = 0
    """The size of its huge pages in bytes; 0: not of hugetlbfs."""
    end: int = 0
    """The highest offset that is mapped."""
    processes: int = 0
    programs: Counter[str] = field(default_factory=Counter)
    sample: tuple[int, int, int] | None = None
    """A process and the range where it is mapped there: to ask for its size."""
    last: int = -1
    """The process that was counted last."""

    @property
    def program(self) -> str:
        """The program that maps it most often."""
        return self.programs.most_common(1)[0][0] if self.programs else ""

    @property
    def name(self) -> str:
        """What people call it."""
        known = known_as(self.program, self.kind, self.end)
        if known:
            return known
        if self.kind == FORKED:
            return f"private memory of {self.key.name}"
        segment = _SEGMENT.fullmatch(self.path)
        if segment is not None:
            which = "private" if segment[1] == "0" * 8 else f"key 0x{segment[1].lstrip('0')}"
            return f"System V {which}, shmid {self.key.inode}"
        if self.path == "/dev/zero (deleted)":
            return f"shared anonymous memory, {units.size(self.end)}"
        return self.path.removeprefix("/").removesuffix(" (deleted)") if self._memfd else self.path

    @property
    def _memfd(self) -> bool:
        return self.path.startswith("/memfd:")


def known_as(program: str, kind: str, size: int) -> str:
    """What people call memory of a program that they know; empty: nothing."""
    name = program.partition(":")[0].rstrip("0123456789.")
    return _KNOWN.get((name, kind), "") if size >= _KNOWN_AT_LEAST else ""


@functools.cache
def shmem_device() -> int:
    """st_dev of memory that Linux itself keeps in its tmpfs: shared anonymous, System V, memfd."""
    fd = os.memfd_create("msharefs-survey")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


@functools.cache
def hugetlb_devices() -> dict[int, int]:
    """st_dev of Linux's own hugetlbfs for each size of pages, and of the mounts here: the sizes."""
    found = {}
    for directory in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(directory.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        flags = _MFD_HUGETLB | (size.bit_length() - 1) << _MFD_HUGE_SHIFT
        with contextlib.suppress(OSError):
            fd = os.memfd_create("msharefs-survey", flags)
            found[os.fstat(fd).st_dev] = size
            os.close(fd)
    for mount in proc.mounts():
        if mount.fstype == "hugetlbfs":
            with contextlib.suppress(OSError):
                found[mount.device] = os.statvfs(mount.directory).f_bsize
    return found


class Objects:
    """All objects that were met, numbered."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._tmpfs: dict[int, bool] = {}
        self.all: list[Object] = []

    def number(self, pid: int, space: int, program: str, mapping: proc.Mapping) -> int:
        """The number of what a process maps; -1 if it is its own private memory."""
        private = mapping.prot[3] == "p"
        # The inode of a System V segment is its shmid, and the first one's is 0.
        if not mapping.inode and not mapping.device and not mapping.path.startswith("[v"):
            return -1
        segment = space if mapping.path.startswith("/SYSV") else 0
        name = "" if mapping.device else mapping.path
        key = Key(mapping.device, mapping.inode, segment, private, name)
        number = self._numbers.get(key)
        if number is None:
            number = self._add(key, self._kind(pid, mapping), mapping.path)
            self.all[number].huge = hugetlb_devices().get(mapping.device, 0)
        found = self.all[number]
        found.end = max(found.end, mapping.offset + mapping.end - mapping.start)
        self.count(number, pid, program)
        if found.sample is None:
            found.sample = (pid, mapping.start, mapping.end)
        return number

    def private_memory(self, program: str) -> int:
        """The number that stands for the private memory of all processes of a program."""
        key = Key(0, 0, 0, private=True, name=program)
        number = self._numbers.get(key)
        return self._add(key, FORKED, "") if number is None else number

    def count(self, number: int, pid: int, program: str) -> None:
        """A process, the one that is looked at now, has memory of an object."""
        found = self.all[number]
        if found.last != pid:
            found.last = pid
            found.processes += 1
            found.programs[program] += 1

    def forget(self, numbers: Iterable[int], program: str) -> None:
        """A process has ended, which had these."""
        for number in numbers:
            self.all[number].processes -= 1
            self.all[number].programs[program] -= 1

    def _add(self, key: Key, kind: str, path: str) -> int:
        self._numbers[key] = len(self.all)
        self.all.append(Object(key, kind, path))
        return self._numbers[key]

    def _kind(self, pid: int, mapping: proc.Mapping) -> str:
        if mapping.prot[3] == "p":
            return UNWRITTEN
        if mapping.device in hugetlb_devices():
            return HUGETLB
        if mapping.device == shmem_device():
            if mapping.path == "/dev/zero (deleted)":
                return ANON
            return SYSV if _SEGMENT.fullmatch(mapping.path) else SHM
        return SHM if self._is_tmpfs(pid, mapping.device) else FILE

    def _is_tmpfs(self, pid: int, device: int) -> bool:
        if device not in self._tmpfs:
            for process in (pid, "self"):
                with contextlib.suppress(OSError):
                    for mount in proc.mounts(process):
                        self._tmpfs.setdefault(mount.device, mount.fstype == "tmpfs")
        return self._tmpfs.setdefault(device, False)


def resident(found: Object) -> int | None:
    """Bytes of memory that an object has, if its kind and our rights let us ask."""
    if found.kind not in SHARED or found.kind == FILE or found.sample is None:
        return None
    try:
        return os.stat(proc.map_file(*found.sample)).st_blocks * 512  # stat(2)
    except OSError:
        return None
