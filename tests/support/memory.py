"""Two kinds of memory on which the same accesses have the same outcome: Linux's, and a region."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from .actor import MAP_FIXED, PAGE, READ_WRITE, Actor, Fault

if TYPE_CHECKING:
    import msharefs

QUANTUM = 2 << 20
"""The quantum of the mount that the tests of a file share."""


class Memory:
    """A range of an actor's addresses where memory is mapped and unmapped; offsets in bytes."""

    size = 2 * QUANTUM

    def __init__(self, actor: Actor, base: int, fd: int) -> None:
        self.actor = actor
        self.base = base
        self.fd = fd
        """The region's descriptor in the actor; -1: plain memory."""

    def map(self, offset: int, size: int = PAGE, prot: int = READ_WRITE) -> None:
        """New memory, all zero, in the place of the old."""
        raise NotImplementedError

    def map_file(
        self,
        offset: int,
        size: int,
        fd: int,
        at: int = 0,
        prot: int = READ_WRITE,
        flags: int = 0,
    ) -> None:
        """The bytes from `at` on of the test's file `fd`, in the place of the old memory.

        `flags` come in addition to MAP_SHARED and MAP_FIXED.
        """
        raise NotImplementedError

    def unmap(self, offset: int, size: int = PAGE) -> None:
        """A hole."""
        raise NotImplementedError

    def protect(self, offset: int, size: int, prot: int) -> None:
        """Other rights."""
        raise NotImplementedError

    def run(self, offset: int) -> list[int] | Fault:
        """Call the function there."""
        return self.actor.call("call", self.base + offset)

    def load(self, offset: int) -> list[int] | Fault:
        """Load a byte."""
        return self.actor.call("load", self.base + offset)

    def store(self, offset: int, value: int = 1) -> list[int] | Fault:
        """Store a byte."""
        return self.actor.call("store", self.base + offset, value)

    def read(self, offset: int, size: int) -> int:
        """read(2) of bytes 0x5a."""
        return self.actor.number("read", self.base + offset, size)

    def write(self, offset: int, size: int) -> list[int] | Fault:
        """write(2): how many bytes were written, and their sum."""
        return self.actor.call("write", self.base + offset, size)


class KernelMemory(Memory):
    """Shared memory of Linux itself, mapped with mmap(2) piece by piece."""

    BASE = 1 << 45  # nothing is there, and nothing comes there unasked

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor, self.BASE, -1)

    def map(self, offset: int, size: int = PAGE, prot: int = READ_WRITE) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
        self.actor.call("plain-map", self.base + offset, size, prot, flags, -1, 0)

    def map_file(
        self,
        offset: int,
        size: int,
        fd: int,
        at: int = 0,
        prot: int = READ_WRITE,
        flags: int = 0,
    ) -> None:
        own = self.actor.give(fd)
        flags |= mmap.MAP_SHARED | MAP_FIXED
        self.actor.call("plain-map", self.base + offset, size, prot, flags, own, at)
        self.actor.call("close", own)

    def unmap(self, offset: int, size: int = PAGE) -> None:
        self.actor.call("plain-unmap", self.base + offset, size)

    def protect(self, offset: int, size: int, prot: int) -> None:
        self.actor.call("plain-protect", self.base + offset, size, prot)


class RegionMemory(Memory):
    """A region, attached."""

    def __init__(self, actor: Actor, region: msharefs.Region) -> None:
        fd = actor.give(region.fd)
        super().__init__(actor, actor.attach(fd), fd)
        self.region = region

    def map(self, offset: int, size: int = PAGE, prot: int = READ_WRITE) -> None:
        self.actor.call("map", self.fd, offset, size, prot)

    def map_file(
        self,
        offset: int,
        size: int,
        fd: int,
        at: int = 0,
        prot: int = READ_WRITE,
        flags: int = 0,
    ) -> None:
        self.region.map(offset, size, prot, flags | mmap.MAP_SHARED | MAP_FIXED, fd, at)

    def unmap(self, offset: int, size: int = PAGE) -> None:
        self.actor.call("unmap", self.fd, offset, size)

    def protect(self, offset: int, size: int, prot: int) -> None:
        self.region.protect(offset, size, prot)
