"""The kinds of shared memory that are compared: how a fresh process gets each.

We find out by trying, once and before anything is measured, which kinds this machine has.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, ClassVar, Self

from msharefs import client, proc, verbs
from msharefs.lab.workers import PAGE_BYTES, Workers
from msharefs.launch.private_mount import PrivateMount
from msharefs.native import check_errno, ffi, lib

from . import hugepages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .figures import Sample

PROBE_BYTES = 2 * hugepages.HUGE_BYTES


@dataclass(frozen=True)
class Memory:
    """A piece of shared memory, and the commands by which a worker gets it."""

    take: tuple[str, ...]
    pass_fds: tuple[int, ...] = ()
    path: str = ""
    """A file to call fallocate(2) or ioctl(2) on, as workers see it."""
    figures: Callable[[], Sample] = field(default=dict)
    """How much it holds now, for all who share it."""


class Backend(ABC):
    """One kind of memory. Everything that it sets up lives as long as `stack`."""

    name: ClassVar[str]
    about: ClassVar[str]

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @abstractmethod
    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """`size` new bytes, empty. OSError: this machine does not have it."""
        yield NotImplemented

    def probe(self) -> None:
        """OSError with the reason if this machine does not have it, or not as it should be."""
        with self.memory(PROBE_BYTES) as memory, Workers(1, memory.pass_fds) as workers:
            for command in memory.take:
                workers.ask(command)
            pages = PROBE_BYTES // PAGE_BYTES
            workers.ask(f"order 0 0 {pages} {pages} sequential")
            faults = workers.ask("touch 1 write")[0].minor_faults.growth
            if self.huge and faults > pages // 2:
                raise OSError(errno.EOPNOTSUPP, "the kernel gave small pages where huge were asked")

    huge: ClassVar[bool] = False


class Memfd(Backend):
    """Ordinary shared memory, as programs have it today."""

    name = "memfd"
    about = "memfd_create(2), 4 KiB pages"

    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """A memfd."""
        fd = os.memfd_create("msharefs-bench", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            yield _file(fd, size)
        finally:
            os.close(fd)


def _file(fd: int, size: int, *advice: str) -> Memory:
    path = proc.fd_path(fd)

    def figures() -> Sample:
        return {"rss_bytes": os.fstat(fd).st_blocks * 512}

    return Memory((f"map {size} {path}", *advice), (fd,), path, figures)


class Thp(Backend):
    """Transparent huge pages of shared memory."""

    name = "thp"
    about = "tmpfs with huge=advise and MADV_HUGEPAGE"
    huge = True

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self._directory = -1
        self._number = count()

    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """A file on the tmpfs."""
        if self._directory < 0:
            self._directory = hugepages.advised_tmpfs()
            self._stack.callback(os.close, self._directory)
        name = str(next(self._number))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        try:
            os.unlink(name, dir_fd=self._directory)
            os.ftruncate(fd, size)
            yield _file(fd, size, "hugepages")
        finally:
            os.close(fd)


class Hugetlb(Backend):
    """Pages of the kernel's pool."""

    name = "hugetlb"
    about = "memfd_create(MFD_HUGETLB), 2 MiB pages of a pool"
    huge = True

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self._pool = stack.enter_context(hugepages.Pool())

    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """A memfd of huge pages."""
        size = verbs.round_up(size, hugepages.HUGE_BYTES)
        self._pool.provide(size)
        fd = os.memfd_create("msharefs-bench", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        try:
            os.ftruncate(fd, size)
            yield _file(fd, size)
        finally:
            os.close(fd)


class SysV(Backend):
    """System V shared memory, the first kind that PostgreSQL and Oracle used."""

    name = "sysv"
    about = "shmget(2), 4 KiB pages"

    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """A segment, removed at the end."""
        ident = lib.shmget(lib.IPC_PRIVATE, size, lib.IPC_CREAT | 0o600)
        check_errno(ident < 0, f"shmget of {size} bytes")
        try:
            yield Memory((f"shm {size} {ident}",))
        finally:
            lib.shmctl(ident, lib.IPC_RMID, ffi.NULL)


class Region(Backend):
    """A region of an msharefs mounted for the benchmark."""

    name = "msharefs"
    about = "a region, attached with the library"
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self._mount: PrivateMount | None = None
        self._number = count()

    def mount(self) -> PrivateMount:
        """The mount, made when it is first needed."""
        if self._mount is None:
            self._mount = self._stack.enter_context(PrivateMount(*self.options))
        return self._mount

    @property
    def directory(self) -> Path:
        """The mount's directory."""
        return self.mount().directory

    @contextmanager
    def memory(self, size: int) -> Iterator[Memory]:
        """A region with `size` bytes mapped at its start."""
        path = self.directory / f"bench-{next(self._number)}"
        with client.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region:
            try:
                quantum = region.stat()["quantum_bytes"]
                region.truncate(verbs.round_up(size, quantum))
                region.map(0, size)
                yield self._describe(str(path), region)
            finally:
                path.unlink()

    def _describe(self, path: str, region: client.Region) -> Memory:
        return Memory((f"attach {path}",), (), path, lambda: region_figures(region))


def region_figures(region: client.Region) -> Sample:
    """The figures of a region, for all its clients together."""
    stat = region.stat()
    return {
        "rss_bytes": stat["rss_bytes"],
        "page_table_bytes": stat["page_table_bytes"],
        "table_frames": sum(stat["table_frames"].values()),
        **{key: stat["counters"][key] for key in ("faults", "links", "materialised_pages")},
        **{key: stat["counters"][key] for key in ("prefaulted",) if key in stat["counters"]},
    }


class StrictRegion(Region):
    """Entries only for pages that somebody has touched."""

    name = "msharefs-strict"
    about = "the same with -o fault_around=1"
    options = ("fault_around=1",)


class WatchedRegion(Region):
    """First touches are faults that come to us, and not Linux's."""

    name = "msharefs-watched"
    about = "the same with -o faults=watched"
    options = ("faults=watched",)


class BudgetRegion(Region):
    """Real page tables of the clients kept small."""

    name = "msharefs-budget"
    about = "the same with -o budget=1M"
    options = ("budget=1M",)


class NativeRegion(Region):
    """The region's memory without the library: FUSE passthrough."""

    name = "msharefs-native"
    about = "a plain mmap(2) of a region"

    def _describe(self, path: str, region: client.Region) -> Memory:
        return Memory((f"map 0 {path}",), (), path, lambda: region_figures(region))


ALL: tuple[type[Backend], ...] = (
    Memfd, Thp, Hugetlb, SysV, Region, StrictRegion, WatchedRegion, NativeRegion, BudgetRegion,
)  # fmt: skip
NAMES = tuple(backend.name for backend in ALL)


class Backends:
    """Every kind that this machine has, ready; a context manager that removes them all again."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self._names = names

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._ready: dict[str, Backend] = {}
        self.missing: dict[str, str] = {}
        """The kinds that this machine does not have, with the reason."""
        try:
            for kind in ALL:
                if kind.name in self._names:
                    self._try(kind)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _try(self, kind: type[Backend]) -> None:
        backend = kind(self._stack)
        try:
            backend.probe()
        except OSError as error:
            self.missing[kind.name] = error.strerror or str(error)
        else:
            self._ready[kind.name] = backend

    def __contains__(self, name: str) -> bool:
        return name in self._ready

    def __getitem__(self, name: str) -> Backend:
        return self._ready[name]

    def region(self) -> Region | None:
        """The kind that has a server, if it is here."""
        found = self._ready.get(Region.name)
        return found if isinstance(found, Region) else None

    @property
    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            kind.name: {
                "about": kind.about,
                "available": kind.name in self._ready,
                **({"why_not": self.missing[kind.name]} if kind.name in self.missing else {}),
            }
            for kind in ALL
            if kind.name in self._names
        }
