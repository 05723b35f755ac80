"""The objects of a region that are files: descriptors by number, and records for the next server.

A VMA names its object by number (struct mm_vma.object; 0 is the region's own memory). The server
keeps a descriptor of each, which it passes to clients, and one page of it mapped, so that the file
is as busy as the kernel would have it. An object goes with the last VMA that names it.

Descriptors die with a server. Their files are recorded beside the region, in one small file for
each; the next server opens a file again by its name, if it is still the same file, or takes it from
a process that has it mapped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from msharefs import proc, processes, verbs

from .descriptors import close_all, close_later, elsewhere
from .mapping import Mapping, punch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .sources import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """The record of an object for the next server."""

    path: str
    device: int
    inode: int
    writable: bool
    page: int
    """Bytes of its pages."""
    anonymous: bool
    """It has no name and no other use: memory that is unmapped is given back."""

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in file `path`; None: there is none, or it is broken."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


@dataclass
class Object:
    """One object. Without a descriptor it was lost with an earlier server."""

    number: int
    record: Record
    fd: int = -1
    kept: Mapping | None = None
    read_only: int = -1
    """The file opened for reading only, once somebody has asked for it."""

    @property
    def huge(self) -> bool:
        """Its pages are huge."""
        return self.record.page != verbs.PAGE

    def release(self) -> list[int]:
        """Unmaps it; returns the descriptors to be closed."""
        fds = [fd for fd in (self.fd, self.read_only) if fd >= 0]
        self.fd = self.read_only = -1
        if self.kept is not None:
            self.kept.close()
            self.kept = None
        return fds


@dataclass(frozen=True)
class Part:
    """A part of an object, at region offsets [start, end)."""

    start: int
    end: int
    number: int
    offset: int
    """The offset of its first byte in the object."""


def ranges(parts: Iterable[Part]) -> list[tuple[int, int]]:
    """The ranges of these parts, in order; adjoining ones are merged."""
    found: list[tuple[int, int]] = []
    for part in parts:
        if found and found[-1][1] == part.start:
            found[-1] = found[-1][0], part.end
        else:
            found.append((part.start, part.end))
    return found


class Objects:
    """The objects of region `name`, recorded in directory `path`, which is made if needed."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._objects: dict[int, Object] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, number: int, source: Source, kept: Mapping) -> Object:
        """The object of `source`; a new one gets `number` and a duplicate of the descriptor.

        `kept` is ours. The same open file is the same object, however often it is mapped.
        """
        for known in self._objects.values():
            if known.record.inode == source.inode and _same(known.fd, source.fd):
                kept.close()
                return known
        record = Record(
            source.path, source.device, source.inode, source.writable, source.page,
            source.anonymous,
        )  # fmt: skip
        added = Object(number, record, kept=kept)
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            new = self._path / "new"
            new.write_text(json.dumps(asdict(record)))
            new.rename(self._path / str(number))
            added.fd = os.dup(source.fd)
        except BaseException:
            kept.close()
            raise
        self._objects[number] = added
        return added

    def describe(self, number: int) -> str:
        """The path of an object's file, as `msharefs maps` shows it."""
        known = self._objects.get(number)
        return known.record.path if known is not None else "lost"

    def keep(self, numbers: Iterable[int]) -> list[int]:
        """Forgets all but these; returns the descriptors to be closed."""
        fds = []
        for number in self._objects.keys() - set(numbers):
            fds += self._objects.pop(number).release()
            (self._path / str(number)).unlink(missing_ok=True)
        return fds

    def check_protect(self, number: int, prot: int) -> None:
        """OSError as from mprotect(2) of the object. EACCES: it was not opened for that."""
        known = self._objects.get(number)
        if known is not None and known.kept is not None:
            known.kept.protect(prot)

    def give_back(self, parts: Iterable[Part]) -> None:
        """Frees the unmapped parts of anonymous objects."""
        for part in parts:
            known = self._objects.get(part.number)
            if known is not None and known.record.anonymous and known.fd >= 0:
                try:
                    punch(known.fd, part.offset, part.end - part.start)
                except OSError as error:
                    log.warning("%s: memory goes back with its object only: %s", self._name, error)

    async def descriptor(self, number: int, clients: Iterable[int], *, write: bool) -> int:
        """A descriptor of an object, still ours; without `write` a read-only one, if possible.

        `clients` are the attached processes. ESTALE: it is lost.
        """
        known = self._objects.get(number)
        if known is not None and known.fd < 0:
            await self.find(clients)
        if known is not None and known.fd >= 0 and known.record.writable and not write:
            await self._open_read_only(known)
        if known is None or known.fd < 0:
            what = f"object {number}" if known is None else f"object {known.record.path}"
            raise OSError(errno.ESTALE, f"{self._name}: {what} is lost; UNMAP it and map it again")
        return known.fd if write or known.read_only < 0 else known.read_only

    async def _open_read_only(self, known: Object) -> None:
        fd = known.fd
        if known.read_only >= 0:
            return
        try:
            found = await elsewhere(
                lambda: os.open(proc.fd_path(fd), os.O_RDONLY | os.O_CLOEXEC),
                f"{self._name}: opening {known.record.path}",
                close_all,
            )
        except OSError as error:
            log.info("%s: clients get it as it is: %s", self._name, error)
            return
        if known.fd == fd and known.read_only < 0:
            known.read_only = found
        else:  # another request was faster, or it is gone
            close_later(found)

    def load(self) -> None:
        """Reads what an earlier server recorded."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._path.iterdir():
                record = Record.read(path)
                if record is not None and path.name.isdecimal():
                    self._objects[int(path.name)] = Object(int(path.name), record)

    async def find(self, clients: Iterable[int]) -> list[str]:
        """Opens what an earlier server had open: by name, or from one of these processes.

        Returns the paths of objects that are still lost.
        """
        pids = list(clients)
        for lost in [known for known in self._objects.values() if known.fd < 0]:
            record = lost.record
            try:
                found = await elsewhere(
                    partial(_find, record, pids),
                    f"{self._name}: opening {record.path}",
                    _drop,
                )
            except OSError as error:
                log.info("%s", error)
                continue
            if lost.fd < 0 and self._objects.get(lost.number) is lost:
                lost.fd, lost.kept = found
            else:
                _drop(found)
        return [known.record.path for known in self._objects.values() if known.fd < 0]

    def close(self) -> None:
        """Lets go of all objects; the records stay."""
        fds = [fd for known in self._objects.values() for fd in known.release()]
        self._objects.clear()
        close_later(*fds)


def _same(one: int, other: int) -> bool:
    """Whether two descriptors of ours are one open file: kcmp(2)."""
    return one >= 0 and processes.same_file(one, other)


def _drop(found: tuple[int, Mapping | None]) -> None:
    fd, kept = found
    if kept is not None:
        kept.close()
    close_later(fd)


def _find(record: Record, pids: list[int]) -> tuple[int, Mapping | None]:
    """Opens the file of a record again. ENOENT: it cannot be found."""
    flags = (os.O_RDWR if record.writable else os.O_RDONLY) | os.O_CLOEXEC
    candidates = [record.path] if record.path.startswith("/") else []
    for pid in pids:
        candidates += processes.mapped_files(pid, record.inode)
    for path in candidates:
        with contextlib.suppress(OSError):
            fd = os.open(path, flags | os.O_NONBLOCK)
            try:
                if _is_file_of(record, fd):
                    os.set_blocking(fd, True)
                    return fd, _keep(fd, record)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
    raise OSError(errno.ENOENT, f"{record.path} is no more, and no attached process has it mapped")


def _is_file_of(record: Record, fd: int) -> bool:
    found = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (record.device, record.inode)


def _keep(fd: int, record: Record) -> Mapping | None:
    with contextlib.suppress(OSError):
        flags = mmap.MAP_SHARED | verbs.MAP_NORESERVE
        return Mapping(fd, record.page, mmap.PROT_READ, flags, 0)
    return None
