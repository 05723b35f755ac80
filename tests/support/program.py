"""Random programs: processes with windows of one region, and the same memory of Linux's own."""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Self

import msharefs

from .actor import MAP_FIXED, PAGE, READ_WRITE, Fault, accerr, maperr
from .memory import QUANTUM, KernelMemory

if TYPE_CHECKING:
    from types import TracebackType

    from .actor import Actor
    from .model import Model
    from .server import Mount

FLAGS = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
FILLED = 0x5A
"""The byte that the actor's read(2) brings."""

Answer = list[int] | Fault | int
"""What came of an access: its numbers, its signal, or the errno of the system call."""


@dataclass(eq=False)
class Window:
    """An attachment of a process."""

    base: int
    prot: int = READ_WRITE
    linked: set[int] = field(default_factory=set)
    """Quanta in which the host mm has answered a fault of it."""


@dataclass(eq=False)
class Program:
    """A process, the region's descriptor in it, and what it has attached."""

    actor: Actor
    fd: int
    windows: list[Window] = field(default_factory=list)

    def attach(self, prot: int = READ_WRITE) -> None:
        """One more window."""
        base = self.actor.attach(self.fd, 0, prot)
        assert base % QUANTUM == 0
        self.windows.append(Window(base, prot))

    def fork(self) -> Program:
        """A child that has the same windows; each is an attachment of its own."""
        child = Program(self.actor.fork(), self.fd)
        assert child.actor.finish() == []
        child.windows = [Window(window.base, window.prot) for window in self.windows]
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
        """Tell a process, which may have the region elsewhere than at the window."""
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
    """What came of the access that was started."""
    try:
        return actor.finish()
    except OSError as error:
        return error.errno or 0


class Twin:
    """A process with Linux's own shared memory, to which the same is done."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.base = KernelMemory.BASE

    def change(self, verb: str, start: int, size: int, prot: int) -> None:
        """mmap(2), mprotect(2) or munmap(2)."""
        where = (self.base + start, size)
        if verb == "map":
            self.actor.call("plain-map", *where, prot, FLAGS, -1, 0)
        elif verb == "unmap":
            self.actor.call("plain-unmap", *where)
        else:
            self.actor.call("plain-protect", *where, prot)

    def perform(self, access: Access) -> Answer:
        """The access; addresses in the answer are those of the window."""
        access.start(self.actor, self.base)
        said = answer(self.actor)
        if isinstance(said, Fault):
            offset = said.address - self.base
            return Fault(said.number, said.code, access.window.base + offset)
        return said


def expect(model: Model, memory: dict[int, int], access: Access) -> tuple[Answer, int]:
    """What must come of an access, and how many pages it touches first; the model remembers it.

    `memory` has the bytes of the region that are not zero.
    """
    window, done, filled = access.window, 0, 0
    while done < access.size:
        at = access.offset + done
        if access.write and not window.prot & mmap.PROT_WRITE:
            verdict = "ACCERR"  # Linux looks at the window first
        else:
            fault = model.fault(at & -PAGE, write=access.write, look=_page, fill=1)
            verdict, filled = fault.verdict, filled + fault.filled
        if verdict != "MAP":
            break
        window.linked.add(at // QUANTUM)
        done = min(access.size, (at & -PAGE) + PAGE - access.offset)
    touched = range(access.offset, access.offset + done)
    if access.write:
        memory.update(dict.fromkeys(touched, access.value))
    if access.size > 1:
        return _of_call(access, [memory.get(at, 0) for at in touched]), filled
    if not done:
        refused = maperr if verdict == "MAPERR" else accerr
        return refused(window.base + access.offset), filled
    return ([] if access.write else [memory.get(access.offset, 0)]), filled


def look(
    model: Model, memory: dict[int, int], window: Window, pages: range, byte: int
) -> tuple[list[int], int]:
    """The same for the actor's look at a byte of each of the pages."""
    found, filled = [], 0
    for page in pages:
        said, more = expect(model, memory, Access(window, page + byte, write=False))
        found.append(-said.code if isinstance(said, Fault) else said[0])
        filled += more
    return found, filled


def _of_call(access: Access, content: list[int]) -> Answer:
    """A system call that got so far."""
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

    def run(self, size: int) -> Run:
        """A new region and its first process."""
        return Run(self, self.mount.path / f"run{next(self._names)}", size)


class Run:
    """A region of its own, and the processes that use it. A context manager."""

    def __init__(self, world: World, path: os.PathLike[str], size: int) -> None:
        self.region = msharefs.open(path, os.O_RDWR | os.O_CREAT)
        self.region.truncate(size)
        self.home = world.zygote.fork()
        """Forks further processes; attaches nothing itself."""
        assert self.home.finish() == []
        self.fd = self.home.give(self.region.fd)
        self.twin = Twin(self.fork().actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.home.end()
        os.unlink(self.region.path)
        with contextlib.suppress(OSError):
            self.region.close()

    def fork(self) -> Program:
        """A process that has the region open and nothing attached."""
        actor = self.home.fork()
        assert actor.finish() == []
        return Program(actor, self.fd)
