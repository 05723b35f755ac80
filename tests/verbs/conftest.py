"""What tests of verbs on a range have in common."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import proc
from support.actor import Actor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

PAGE = 4096
SIZE = 2 << 20
names = (f"r{number}" for number in itertools.count())


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """A region of 4 MiB whose first half is mapped."""
    path = shared_mount.path / next(names)
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as made:
        made.truncate(2 * SIZE)
        made.map(0, SIZE)
        yield made
    path.unlink()


def entries(region: msharefs.Region) -> int:
    """How many pages have an entry in the shared tables."""
    return region.describe("audit")["leaves"]


class Process:
    """A process that has the region attached, and has written all of the first half."""

    def __init__(self, actor: Actor, region: msharefs.Region, seed: int) -> None:
        self.actor = actor
        self.seed = seed
        self.base = actor.attach(actor.give(region.fd))
        self.fill()

    def fill(self) -> None:
        assert self.actor.call("fill", self.base, SIZE, self.seed, 0) == []

    def is_right(self) -> bool:
        """Whether it reads what was written last."""
        return self.actor.call("check", self.base, SIZE, self.seed, 0) == [0]

    def mapped(self) -> int:
        """Bytes of shared memory in its own page tables."""
        return proc.status_bytes(self.actor.pid, "RssShmem")


@pytest.fixture
def two(region: msharefs.Region, actor_program: Path) -> Iterator[list[Process]]:
    with Actor.launch(actor_program) as first, Actor.launch(actor_program) as second:
        yield [Process(first, region, 7), Process(second, region, 7)]
