"""Processes whose page tables are known to the table: their memory is far from everything else."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab.survey import figures

from support.actor import READ_WRITE
from support.memory import MAP_FIXED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from support.actor import Actor

TABLE = 4096
SPAN = 2 << 20
BASE = 0x2000_0000_0000
"""Nothing else of a process is in these 512 GiB, so their PUD and PMD tables are the memory's."""
SLOT = 512 << 30
TABLES = 3
SIZE = TABLES * SPAN
NAME = f"survey-{os.getpid()}"
SHARED, PRIVATE, ANONYMOUS = mmap.MAP_SHARED, mmap.MAP_PRIVATE, mmap.MAP_ANONYMOUS


def silent(title: str, total: int) -> Callable[[int], None]:
    del title, total
    return lambda _amount: None


def survey(actors: Iterable[Actor], **options: Any) -> dict[str, Any]:
    """Look at these processes."""
    found = figures.survey([actor.pid for actor in actors], silent, **options)
    assert found["counted_bytes"] <= found["looked_vmpte_bytes"]
    return found


def memory(
    actor: Actor,
    fd: int = -1,
    *,
    address: int = BASE,
    size: int = SIZE,
    flags: int = SHARED,
    prot: int = READ_WRITE,
    offset: int = 0,
) -> None:
    """Map memory in a process."""
    more = ANONYMOUS if fd < 0 else 0
    actor.number("plain-map", address, size, prot, flags | more | MAP_FIXED, fd, offset)


def touch(actor: Actor, address: int = BASE, size: int = SIZE) -> None:
    """Load all of it."""
    actor.number("check", address, size, 0, 0)


def the(found: dict[str, Any], kind: str, size: int = SIZE) -> dict[str, Any]:
    """The one object of a class with so many bytes."""
    (one,) = (one for one in found["objects"] if one["class"] == kind and one["bytes"] == size)
    return dict(one)


def saved(found: dict[str, Any], kind: str) -> float:
    """What would go of a class."""
    (size,) = (one["saved_bytes"] for one in found["classes"] if one["class"] == kind)
    return float(size)


def scheme(found: dict[str, Any], name: str, kind: str) -> float:
    """What would go of a class if tables were shared so."""
    (one,) = (one for one in found["schemes"] if one["scheme"] == name)
    return float(one["by_class"].get(kind, 0))


@pytest.fixture
def three(actors: Callable[[], Actor]) -> list[Actor]:
    """Processes of one program that are no relatives."""
    return [actors() for _ in range(3)]


@pytest.fixture
def family(actors: Callable[[], Actor]) -> Callable[[int], list[Actor]]:
    """Processes of which the first forks the others, when it is asked to."""
    parent = actors()

    def fork(children: int) -> list[Actor]:
        born = []
        for _ in range(children):
            child = parent.fork()
            child.finish()
            born.append(child)
        return [parent, *born]

    fork.parent = parent  # type: ignore[attr-defined]
    return fork


def memfd(size: int = SIZE) -> int:
    """A memfd that is not inherited."""
    fd = os.memfd_create(NAME)
    os.ftruncate(fd, size)
    return fd
