"""Regions to attach, and memory to access."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.memory import QUANTUM, KernelMemory, Memory, RegionMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.actor import Actor
    from support.server import Mount

_names = (f"r{number}" for number in itertools.count())


@pytest.fixture
def make_region(shared_mount: Mount) -> Iterator[Callable[..., msharefs.Region]]:
    """Make sized regions on the mount of the file; they end with the test."""
    made: list[msharefs.Region] = []

    def make(size: int = 2 * QUANTUM, mapped: bool = True) -> msharefs.Region:
        region = msharefs.open(shared_mount.path / next(_names), os.O_RDWR | os.O_CREAT)
        made.append(region)
        region.truncate(size)
        if mapped:
            region.map(0, size)
        return region

    yield make
    for region in made:
        region.close()
        os.unlink(region.path)


@pytest.fixture(params=["kernel", "msharefs"])
def memory(
    request: pytest.FixtureRequest,
    actors: Callable[[], Actor],
    make_region: Callable[..., msharefs.Region],
) -> Memory:
    """Memory of a process where nothing is mapped yet: Linux's own first, then a region's."""
    if request.param == "kernel":
        return KernelMemory(actors())
    return RegionMemory(actors(), make_region(Memory.size, mapped=False))
