"""A region file mapped by a plain mmap(2), with no library of ours."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from .actor import READ_WRITE

if TYPE_CHECKING:
    from .actor import Actor, Fault


class Native:
    """A range of a process's addresses that maps a region natively."""

    def __init__(self, actor: Actor, base: int) -> None:
        self.actor = actor
        self.base = base

    @classmethod
    def map(
        cls, actor: Actor, fd: int, size: int, *, prot: int = READ_WRITE, offset: int = 0,
        flags: int = mmap.MAP_SHARED,
    ) -> Native:  # fmt: skip
        """mmap(2) of our descriptor `fd`; the process gets a duplicate for it and closes that."""
        theirs = actor.give(fd)
        try:
            return cls(actor, actor.number("plain-map", 0, size, prot, flags, theirs, offset))
        finally:
            actor.call("close", theirs)

    def load(self, offset: int) -> list[int] | Fault:
        """Load a byte."""
        return self.actor.call("load", self.base + offset)

    def store(self, offset: int, value: int) -> list[int] | Fault:
        """Store a byte."""
        return self.actor.call("store", self.base + offset, value)

    def unmap(self, size: int) -> None:
        """munmap(2) of the first `size` bytes."""
        self.actor.call("plain-unmap", self.base, size)
