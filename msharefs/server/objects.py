"""The objects of a region that are files: descriptors by number, and records for the next server.

A VMA names its object by number (struct mm_vma.object; 0 is the region's own memory). The server
keeps a descriptor of each, which it passes to clients, and one page of it mapped, so that the file
is as busy as the kernel would have it. An object goes with the last VMA that names it.

Descriptors die with a server. Their files are recorded beside the region, in one small file for
each; the next server opens a file again by its name, or by way of a process that has it mapped.
Anything may lie at that name by then, and the server may open it all: so it first looks at what is
there, without opening it, and opens only the very file (identity.py), with the rights that the
first descriptor had.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import stat
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from msharefs import proc, processes, verbs
from msharefs.native import check, lib

from .descriptors import close, close_all, close_later, elsewhere
from .identity import Identity, look
from .mapping import Mapping, map_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from .sources import Source

log = logging.getLogger(__name__)

# Some may be on a file system that does not answer.
_FOUND_AT_ONCE = 16
# What a record is called until it has been written.
_NEW = "new"


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
    user: int = -1
    """Who mapped it. -1: an older version of ours has recorded it, and nothing of what follows."""
    handle: str = ""
    born: int = 0
    mount: int = 0
    unique: bool = False

    @classmethod
    def of(cls, source: Source) -> Record:
        """What is to be known of a source."""
        return cls(
            path=source.path,
            writable=source.writable,
            page=source.page,
            anonymous=source.anonymous,
            user=source.user,
            **asdict(source.identity),
        )

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in file `path`; None: there is none, or it is broken."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @property
    def identity(self) -> Identity:
        """Which file it is."""
        return Identity(self.device, self.inode, self.handle, self.born, self.mount, self.unique)


def records(directory: Path) -> tuple[dict[int, Record], list[str]]:
    """The records in a directory, by number, and the names of the files that are none."""
    found, broken = {}, []
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            record = Record.read(path)
            if record is not None and path.name.isdecimal():
                found[int(path.name)] = record
            elif path.name != _NEW and path.exists():
                broken.append(path.name)
    return found, sorted(broken)


@dataclass
class Object:
    """One object. Without a descriptor it was lost with an earlier server."""

    number: int
    record: Record
    fd: int = -1
    lost: bool = False
    """It was looked for, and not found."""
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
            if known.record.inode == source.identity.inode and _same(known.fd, source.fd):
                kept.close()
                return known
        added = Object(number, Record.of(source), kept=kept)
        try:
            self._write(added)
            added.fd = os.dup(source.fd)
        except BaseException:
            kept.close()
            raise
        self._objects[number] = added
        return added

    def _write(self, known: Object) -> None:
        self._path.mkdir(mode=0o700, exist_ok=True)
        new = self._path / _NEW
        new.write_text(json.dumps(asdict(known.record)))
        os.rename(new, self._record(known.number))

    def knows(self, number: int) -> bool:
        """Whether that is one of them."""
        return number in self._objects

    def is_lost(self, number: int) -> bool:
        """Whether we have looked for it, and it cannot be found."""
        known = self._objects.get(number)
        return known is not None and known.fd < 0 and known.lost

    def tidy(self) -> None:
        """Makes the records those of the objects that there are."""
        recorded, broken = records(self._path)
        for name in (*broken, *map(str, recorded.keys() - self._objects.keys())):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path / name)
        for number in self._objects.keys() - recorded.keys():
            self._write(self._objects[number])

    def _record(self, number: int) -> str:
        # A Path would intern each number: see proc._machines.
        return f"{self._path}/{number}"

    def get(self, number: int) -> Object:
        """An object that a VMA names. ESTALE: nobody knows it any more."""
        try:
            return self._objects[number]
        except KeyError:
            raise OSError(errno.ESTALE, f"{self._name}: object {number} is lost") from None

    def describe(self, number: int) -> str:
        """The path of an object's file, as `msharefs maps` shows it."""
        known = self._objects.get(number)
        return known.record.path if known is not None else "lost"

    async def keep(self, numbers: Iterable[int]) -> None:
        """Forgets all but these, and closes them."""
        gone = [self._objects.pop(number) for number in self._objects.keys() - set(numbers)]
        for known in gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._record(known.number))
        for known in gone:
            await close(*known.release(), user=known.record.user, mount=known.record.device)

    def check_protect(self, number: int, prot: int) -> None:
        """OSError as from mprotect(2) of the object. EACCES: it was not opened for that."""
        known = self._objects.get(number)
        if known is not None and known.kept is not None:
            known.kept.protect(prot)

    def unused(self, parts: Iterable[Part]) -> Iterator[tuple[int, int, int]]:
        """What unmapping these parts has left of anonymous objects: descriptor, offset, size."""
        for part in parts:
            known = self._objects.get(part.number)
            if known is not None and known.record.anonymous and known.fd >= 0:
                yield known.fd, part.offset, part.end - part.start

    async def descriptor(
        self, number: int, clients: Iterable[int], *, write: bool, may_write: bool = True
    ) -> int:
        """A descriptor of an object, still ours; without `write` a read-only one, if possible.

        Without `may_write` nothing else. `clients` are the attached processes. ESTALE: it is lost.
        EMFILE and its like: it cannot be opened now; so ETIMEDOUT, for its file system.
        """
        known = self._objects.get(number)
        if known is not None and known.fd < 0:
            await self._find(known, list(clients))
        if known is not None and known.fd >= 0 and known.record.writable and not write:
            try:
                await self._open_read_only(known)
            except OSError as error:
                if not may_write:
                    raise
                log.info("%s: clients get it as it is: %s", self._name, error)
        kept = known is not None and known.record.writable and not may_write
        if known is None or known.fd < 0 or (kept and known.read_only < 0):
            what = f"object {number}" if known is None else f"object {known.record.path}"
            raise OSError(errno.ESTALE, f"{self._name}: {what} is lost; UNMAP it and map it again")
        return known.fd if write or known.read_only < 0 else known.read_only

    async def _open_read_only(self, known: Object) -> None:
        fd = known.fd
        if known.read_only >= 0:
            return
        found = await elsewhere(
            lambda: os.open(proc.fd_path(fd), os.O_RDONLY | os.O_CLOEXEC),
            f"{self._name}: opening {known.record.path}",
            close_all,
            user=known.record.user,
            mount=known.record.device,
        )
        if known.fd == fd and known.read_only < 0:
            known.read_only = found
        else:  # another request was faster, or it is gone
            close_later(found, user=known.record.user)

    def load(self) -> None:
        """Reads what an earlier server recorded."""
        recorded, broken = records(self._path)
        for name in broken:
            log.warning("%s: %s is no record of an object", self._name, self._path / name)
        for number, record in recorded.items():
            self._objects[number] = Object(number, record)

    async def find(self, clients: Iterable[int]) -> list[str]:
        """Opens what an earlier server had open: by name, or from one of these processes.

        Returns the paths of objects that are still lost.
        """
        pids = list(clients)
        lost = iter([known for known in self._objects.values() if known.fd < 0])

        async def work() -> None:
            for each in lost:
                with contextlib.suppress(OSError):  # whoever needs it tries again
                    await self._find(each, pids)

        async with trio.open_nursery() as nursery:
            for _ in range(_FOUND_AT_ONCE):
                nursery.start_soon(work)
        return [known.record.path for known in self._objects.values() if known.fd < 0]

    async def _find(self, lost: Object, pids: list[int]) -> None:
        record = lost.record
        drop = partial(_drop, record.user)
        try:
            found = await elsewhere(
                partial(_find, record, pids),
                f"{self._name}: opening {record.path}",
                drop,
                user=record.user,
                mount=record.device,
            )
        except OSError as error:
            log.info("%s: %s", self._name, error)
            if error.errno in (*processes.SHORT, errno.ETIMEDOUT):
                raise
            lost.lost = True
            return
        if lost.fd < 0 and self._objects.get(lost.number) is lost:
            lost.fd, lost.kept = found
        else:
            drop(found)

    def close(self) -> None:
        """Lets go of all objects; the records stay."""
        for known in self._objects.values():
            close_later(*known.release(), user=known.record.user, mount=known.record.device)
        self._objects.clear()


def _same(one: int, other: int) -> bool:
    """Whether two descriptors of ours are one open file: kcmp(2)."""
    return one >= 0 and processes.same_file(one, other)


def _drop(user: int, found: tuple[int, Mapping | None]) -> None:
    fd, kept = found
    if kept is not None:
        kept.close()
    close_later(fd, user=user)


def _find(record: Record, pids: list[int]) -> tuple[int, Mapping | None]:
    """Opens the file of a record again. ENOENT: it cannot be found. ESTALE: nor be recognized.

    EMFILE and its like: we could not look everywhere.
    """
    if record.user < 0:
        raise OSError(
            errno.ESTALE,
            f"{record.path} was recorded by an older version, without what tells it from a file "
            "that has the same number today",
        )
    short: OSError | None = None
    for reach in _looks(record, pids):
        try:
            seen = reach()
            try:
                if _is_file_of(record, seen):
                    fd = os.open(proc.fd_path(seen), _flags(record))
                    return fd, _keep(fd, record)
            finally:
                os.close(seen)
        except OSError as error:
            if error.errno in processes.SHORT:
                short = error
    if short is not None:
        try:
            raise short
        finally:  # see Inbox.get
            del short
    raise OSError(errno.ENOENT, f"{record.path} is no more, and no attached process has it mapped")


def _looks(record: Record, pids: list[int]) -> Iterator[Callable[[], int]]:
    """Where the file may be: functions that open what is there as a path only (O_PATH)."""
    if record.path.startswith("/"):
        yield lambda: check(lib.identity_find(os.fsencode(record.path)), record.path)
    for pid in pids:
        for path in processes.mapped_files(pid, record.inode):
            yield partial(os.open, path, os.O_PATH | os.O_CLOEXEC)


def is_gone(record: Record) -> bool:
    """Whether another file, or none, is where an object's was. For a thread."""
    if not record.path.startswith("/") or record.user < 0:
        return False  # only a process that has it mapped could tell
    try:
        seen = check(lib.identity_find(os.fsencode(record.path)), record.path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        return not _is_file_of(record, seen)
    finally:
        os.close(seen)


def _flags(record: Record) -> int:
    return (os.O_RDWR if record.writable else os.O_RDONLY) | os.O_NOCTTY | os.O_CLOEXEC


def _is_file_of(record: Record, fd: int) -> bool:
    """Whether `fd` leads to the file of a record, and may be opened for who mapped that."""
    found = look(fd)
    if not stat.S_ISREG(found.mode) or not found.identity.is_same(record.identity):
        return False
    if record.identity.unique:
        return True
    # It may be another file after all. Then let it be one that this user may open anyway.
    if record.anonymous:
        name = os.readlink(proc.fd_path(fd))
        return found.owner == os.geteuid() and name == f"/memfd:{record.path} (deleted)"
    return record.user in (0, found.owner)


def _keep(fd: int, record: Record) -> Mapping | None:
    with contextlib.suppress(OSError):
        flags = mmap.MAP_SHARED | verbs.MAP_NORESERVE
        return map_file(fd, record.page, mmap.PROT_READ, flags, 0)
    return None
