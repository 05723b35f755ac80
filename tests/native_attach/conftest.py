"""Processes that map region files by a plain mmap(2), with no library of ours."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.memory import QUANTUM
from support.nativemap import Native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.actor import Actor
    from support.server import Mount

_names = (f"n{number}" for number in itertools.count())


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """A region of 4 MiB, mapped from end to end."""
    with msharefs.open(shared_mount.path / next(_names), os.O_RDWR | os.O_CREAT) as made:
        made.truncate(2 * QUANTUM)
        made.map(0, 2 * QUANTUM)
        yield made
        os.unlink(made.path)


@pytest.fixture
def native(actors: Callable[[], Actor], region: msharefs.Region) -> Native:
    """A process that has mapped the whole region."""
    return Native.map(actors(), region.fd, 2 * QUANTUM)
