"""What tests of verbs on a range have in common."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

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
