"""A region of many spans, and processes with a budget of page tables for it."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.spans import BUDGET, SPAN, SPANS, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.actor import Actor
    from support.server import Mount

_names = (f"b{number}" for number in itertools.count())


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """A region of SPANS spans, mapped from end to end."""
    with msharefs.open(shared_mount.path / next(_names), os.O_RDWR | os.O_CREAT) as made:
        made.truncate(SPANS * SPAN)
        made.map(0, SPANS * SPAN)
        yield made
    os.unlink(made.path)


@pytest.fixture
def client(actors: Callable[[], Actor], region: msharefs.Region) -> Callable[..., Client]:
    """Attach the region in a process of its own, with a budget unless it is 0."""

    def make(budget: int = BUDGET) -> Client:
        made = Client.attached(actors(), region)
        if budget:
            made.budget(budget)
        return made

    return make
