"""Files to map, and memory to map them into: Linux's own first, then a region's."""

from __future__ import annotations

import itertools
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import namespace
from support.audit import assert_whole
from support.memory import QUANTUM, KernelMemory, Memory, RegionMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

_names = (f"r{number}" for number in itertools.count())


@pytest.fixture
def make_region(shared_mount: Mount) -> Iterator[Callable[..., msharefs.Region]]:
    """Make sized regions without mappings; they end with the test, after an audit."""
    made: list[msharefs.Region] = []

    def make(size: int = Memory.size) -> msharefs.Region:
        region = msharefs.open(shared_mount.path / next(_names), os.O_RDWR | os.O_CREAT)
        made.append(region)
        region.truncate(size)
        return region

    yield make
    for region in made:
        assert_whole(region)
        region.close()
        os.unlink(region.path)


@pytest.fixture(params=["kernel", "msharefs"])
def memory(
    request: pytest.FixtureRequest,
    actors: Callable[[], Actor],
    make_region: Callable[..., msharefs.Region],
) -> Memory:
    """Memory of a process where nothing is mapped yet."""
    if request.param == "kernel":
        return KernelMemory(actors())
    return RegionMemory(actors(), make_region())


@pytest.fixture(params=["disk", "tmpfs", "memfd"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """An empty file."""
    if request.param == "memfd":
        fd = os.memfd_create("object", os.MFD_CLOEXEC)
    else:
        directory = tmp_path if request.param == "disk" else namespace.SHM
        fd, name = tempfile.mkstemp(dir=directory, prefix="test-")
        os.unlink(name)
    yield fd
    os.close(fd)


assert Memory.size == 2 * QUANTUM
