"""Regions that come and go: a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from msharefs.native import lib
from msharefs.server.options import MountOptions
from msharefs.server.regions import LEFTOVER_AT_ONCE, Regions

from support.calls import in_child, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def regions(public_tmp: Path) -> Iterator[Regions]:
    options = MountOptions(directory=public_tmp, state=public_tmp, owner="process", quirks="v3")
    made = Regions(options, public_tmp)
    yield made
    made.close()


@contextmanager
def nothing_can_be_written() -> Iterator[None]:
    """As on a full file system: EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_one_that_cannot_be_recorded_is_not_there(regions: Regions, public_tmp: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with nothing_can_be_written(), refused(errno.EFBIG):
        regions.create(1, os.getpid())
    with refused(errno.ENOENT):
        regions.find(1)
    assert os.listdir(public_tmp / "regions") == []
    assert os.listdir("/proc/self/fd") == before


def test_one_whose_size_cannot_be_recorded_has_none(regions: Regions, public_tmp: Path) -> None:
    regions.create(1, os.getpid())
    for size in (0, 512 << 30):  # 0: frozen, a quirk of v3
        with nothing_can_be_written(), refused(errno.EFBIG):
            trio.run(regions.set_size, 1, size)
        assert os.listdir(public_tmp / "regions") == ["1.unsized"]
    trio.run(regions.set_size, 1, 512 << 30)
    assert regions.size(1) == 512 << 30


def test_one_that_goes_while_the_attached_are_counted(regions: Regions) -> None:
    """Dead processes of another are looked for meanwhile, which takes a while."""

    async def count() -> int:
        for ident in (1, 2):
            regions.create(ident, os.getpid())
            await regions.set_size(ident, 512 << 30)
        host = regions.find(1).host
        assert host is not None
        assert lib.slot_claim(host.mm, os.getpid(), 0) == 0

        async def reap_dead(**_: object) -> None:
            await regions.evict(2)

        host.clients.reap_dead = reap_dead  # type: ignore[method-assign]
        return await regions.attached()

    assert in_child(lambda: trio.run(count)) == 1


def test_files_that_stay_open_are_looked_at_a_few_at_a_time(
    regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user can have many of them, and the thread that serves looks whether they are free."""
    looked: list[int] = []

    def remove(_: Path, ident: int) -> bool:
        looked.append(ident)
        return open_no_more

    async def main() -> None:
        nonlocal open_no_more
        for ident in range(100):
            regions.create(ident, os.getpid())
            await regions.evict(ident)
            regions.drop_unused(ident)  # somebody else asks for that, too: each waits once
        looked.clear()
        for _ in range(4):
            await regions.catch_up()
        await regions.reap_dead()
        assert len(looked) == 4 * LEFTOVER_AT_ONCE
        assert set(looked) == set(range(100))
        open_no_more = True
        for _ in range(4):
            await regions.catch_up()
        assert len(regions) == 0

    open_no_more = False
    monkeypatch.setattr("msharefs.server.regions.remove_objects", remove)
    trio.run(main)
