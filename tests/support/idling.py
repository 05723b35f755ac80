"""Processes whose accesses a test knows, interval by interval, for `msharefs idle`."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import msharefs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .actor import Actor
    from .server import Mount

PAGE = 4096
SIZE = 8 << 20
PAGES = SIZE // PAGE
NOBODY_TOUCHED = 100


@contextlib.contextmanager
def filled(mount: Mount, name: str) -> Iterator[msharefs.Region]:
    """A region of which all pages but the last ones have been written."""
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        view = region.attach()
        for page in range(PAGES - NOBODY_TOUCHED):
            view[page * PAGE] = page % 251
        region.detach()
        yield region
        region.detach()


class Accesses:
    """What the processes do in each interval, in the place of a sleep."""

    def __init__(self, *rounds: Callable[[], object]) -> None:
        self.rounds = list(rounds)

    def __call__(self, seconds: float) -> None:
        del seconds
        self.rounds.pop(0)()


def ages(found: dict[str, Any]) -> list[int]:
    return [age["pages"] for age in found["regions"][0]["ages"]]


def attached(actor: Actor, region: msharefs.Region) -> int:
    return actor.attach(actor.give(region.fd))


def load(actor: Actor, base: int, pages: Iterator[int] | range | list[int]) -> None:
    for page in pages:
        assert actor.call("load", base + page * PAGE) == [page % 251]
