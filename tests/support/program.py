"""Random programs: processes with windows of one region, and the same memory of Linux's own.

A file that is mapped into the region is mapped so that its offsets are the region's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Self

import msharefs

from .actor import MAP_FIXED, PAGE, READ_WRITE, Fault, accerr, maperr
from .memory import QUANTUM, KernelMemory
from .model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from .actor import Actor
    from .model import Model
    from .server import Mount

FLAGS = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
FILLED = 0x5A
"""The byte that the actor's read(2) brings."""

Answer = list[int] | Fault | int
"""The result of an access: its numbers, its signal, or the errno of the system call."""


@dataclass(eq=False)
class Window:
    """An attachment of a process: of the whole region, or of the part [start, end)."""

    base: int
    """The address of region offset 0: it need not be in the part."""
    prot: int = READ_WRITE
    start: int = 0
    end: int = 1 << 62
    linked: set[int] = field(default_factory=set)
    """Quanta in which the host mm has answered one of its faults."""

    def has(self, start: int, end: int) -> bool:
        """Whether it has these bytes of the region."""
        return self.start <= start and end <= self.end


@dataclass(eq=False)
class Program:
    """A process, the region's descriptor in it, and its attachments."""

    actor: Actor
    fd: int
    windows: list[Window] = field(default_factory=list)

    def attach(self, prot: int = READ_WRITE, part: tuple[int, int] | None = None) -> None:
        """One more window, of a part [start, end) or of the whole."""
        start, end = part or (0, 0)
        base = self.actor.attach(self.fd, 0, prot, offset=start, size=end - start)
        assert base % QUANTUM == 0
        self.windows.append(Window(base - start, prot, start, end or 1 << 62))

    def fork(self) -> Program:
        """A child with the same windows; each is an attachment of its own."""
        child = Program(self.actor.fork(), self.fd)
        assert child.actor.finish() == []
        child.windows = [replace(window, linked=set()) for window in self.windows]
        return child


@dataclass(frozen=True)
class Access:
    """A load, or a store of `value`; or read(2) or write(2) of `size` bytes, if that is not 1."""

    window: Window
    offset: int
    write: bool
    size: int = 1
    value: int = FILLED

    def start(self, actor: Actor, base: int | None = None) -> None:
        """Tell a process to do it; it may have the region at another address than the window."""
        at = (self.window.base if base is None else base) + self.offset
        if self.size > 1:
            # A program that writes to a file reads its memory.
            actor.start("read" if self.write else "write", at, self.size)
        elif self.write:
            actor.start("store", at, self.value)
        else:
            actor.start("load", at)

    def perform(self, actor: Actor) -> Answer:
        """Let a process do it now."""
        self.start(actor)
        return answer(actor)


def answer(actor: Actor) -> Answer:
    """The result of the access that was started."""
    try:
        return actor.finish()
    except OSError as error:
        return error.errno or 0


class Twin:
    """A process with Linux's own shared memory, with which the same is done."""

    def __init__(self, actor: Actor, file: int) -> None:
        self.actor = actor
        self.base = KernelMemory.BASE
        self._file = actor.give(file)

    def change(self, verb: str, start: int, size: int, prot: int, kind: Kind) -> None:
        """mmap(2), mprotect(2) or munmap(2)."""
        where = (self.base + start, size)
        if verb == "map" and kind is Kind.FILE:
            flags = FLAGS & ~mmap.MAP_ANONYMOUS
            self.actor.call("plain-map", *where, prot, flags, self._file, start)
        elif verb == "map":
            self.actor.call("plain-map", *where, prot, FLAGS, -1, 0)
        elif verb == "unmap":
            self.actor.call("plain-unmap", *where)
        else:
            self.actor.call("plain-protect", *where, prot)

    def advise(self, start: int, size: int, advice: int) -> int:
        """madvise(2): 0 or its errno."""
        try:
            self.actor.call("plain-advise", self.base + start, size, advice)
        except OSError as error:
            return error.errno or 0
        return 0

    def perform(self, access: Access) -> Answer:
        """The access; addresses in the answer are those of the window."""
        access.start(self.actor, self.base)
        said = answer(self.actor)
        if isinstance(said, Fault):
            offset = said.address - self.base
            return Fault(said.number, said.code, access.window.base + offset)
        return said


class Foresight:
    """Foresees the results of accesses, by a model of the region and its bytes, and keeps them."""

    def __init__(self, model: Model, file: dict[int, int]) -> None:
        self.model = model
        self.faults = 0
        """Pages touched first."""
        self.unsure = 0
        """So many of them may not have been counted."""
        self._anonymous: dict[int, int] = {}  # bytes that are not zero
        self._file = dict(file)

    def expect(self, access: Access, *, unsure: bool = False) -> Answer:
        """The right result of an access; `unsure`: another access may have gone half the way."""
        window, done = access.window, 0
        while done < access.size:
            at = access.offset + done
            if access.write and not window.prot & mmap.PROT_WRITE:
                verdict = "ACCERR"  # Linux looks at the window first
            else:
                fault = self.model.fault(at & -PAGE, write=access.write, look=_page, fill=1)
                verdict = fault.verdict
                self.faults += fault.filled
                # An access to a page of a file brings some around it.
                self.unsure += fault.filled * (unsure or self._is_file(at))
            if verdict != "MAP":
                break
            window.linked.add(at // QUANTUM)
            done = min(access.size, (at & -PAGE) + PAGE - access.offset)
        touched = range(access.offset, access.offset + done)
        if access.write:
            self.put(touched, access.value)
        if access.size > 1:
            return _of_call(access, [self._get(at) for at in touched])
        if not done:
            refused = maperr if verdict == "MAPERR" else accerr
            return refused(window.base + access.offset)
        return [] if access.write else [self._get(access.offset)]

    def look(self, window: Window, pages: range, byte: int) -> list[int]:
        """The right result of the actor's look at a byte of each of the pages."""
        said = [self.expect(Access(window, page + byte, write=False)) for page in pages]
        return [-found.code if isinstance(found, Fault) else found[0] for found in said]

    def put(self, offsets: Iterable[int], value: int) -> None:
        """Stores a byte at each."""
        for offset in offsets:
            self._bytes(offset)[offset] = value

    def drop(self, start: int, end: int) -> None:
        """There is a new mapping; anonymous memory is zero, a file keeps its contents."""
        for at in [at for at in self._anonymous if start <= at < end]:
            del self._anonymous[at]

    def zero(self, start: int, end: int) -> None:
        """The contents are gone, those of a file, too."""
        for at in [at for at in (*self._anonymous, *self._file) if start <= at < end]:
            self._bytes(at).pop(at, None)

    def populate(self, pages: Iterable[int]) -> None:
        """Each page has an entry as from a load."""
        for page in pages:
            fault = self.model.fault(page, write=False, look=_page, fill=1)
            self.faults += fault.filled
            self.unsure += fault.filled * self._is_file(page)

    def _get(self, offset: int) -> int:
        return self._bytes(offset).get(offset, 0)

    def _bytes(self, offset: int) -> dict[int, int]:
        return self._file if self._is_file(offset) else self._anonymous

    def _is_file(self, offset: int) -> bool:
        cell = self.model.cell_of(offset)
        return cell is not None and cell.kind is Kind.FILE


def _of_call(access: Access, content: list[int]) -> Answer:
    """The result of a system call that got so far."""
    if not content:
        return 14  # EFAULT
    return [len(content)] if access.write else [len(content), sum(content)]


def _page(offset: int) -> tuple[int, int]:
    return offset, offset + PAGE


class World:
    """A mount, and a process that forks the processes of all runs. A context manager."""

    def __init__(self, mount: Mount, zygote: Actor) -> None:
        self.mount = mount
        self.zygote = zygote
        self._names = count()
        zygote.call("disown")

    def run(self, size: int, content: dict[int, int]) -> Run:
        """A new region and its first process."""
        return Run(self, self.mount.path / f"run{next(self._names)}", size, content)


class Run:
    """A region of its own, and the processes that use it. A context manager.

    `content` is that of the file: offset and value of each byte that is not zero.
    """

    def __init__(
        self, world: World, path: os.PathLike[str], size: int, content: dict[int, int]
    ) -> None:
        self.region = msharefs.open(path, os.O_RDWR | os.O_CREAT)
        self.region.truncate(size)
        self.home = world.zygote.fork()
        """Forks further processes; attaches nothing itself."""
        assert self.home.finish() == []
        self.fd = self.home.give(self.region.fd)
        self.file = os.memfd_create("object")
        os.ftruncate(self.file, size)
        for offset, value in content.items():
            os.pwrite(self.file, bytes([value]), offset)
        self.twin = Twin(self.fork().actor, self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.home.end()
        os.close(self.file)
        os.unlink(self.region.path)
        with contextlib.suppress(OSError):
            self.region.close()

    def fork(self) -> Program:
        """A process that has the region open and nothing attached."""
        actor = self.home.fork()
        assert actor.finish() == []
        return Program(actor, self.fd)
