"""Descriptors of clients that Linux tells nothing of for as long as the client likes: epoll(7).

Who waits for events of one in a page that never comes keeps it locked, and /proc/PID/fdinfo waits
for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import lib

from support import byhand, holding, libc
from support.calls import refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=20)
SIZE = 2 << 20
FIXED = verbs.MAP_SHARED | verbs.MAP_FIXED


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    with shared_mount.region(SIZE) as opened:
        yield opened


@pytest.fixture
def epoll() -> Iterator[int]:
    """A descriptor of an epoll(7) that a thread of ours keeps locked.

    A server that waits for it may go on after a while, so that the test can fail.
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(select.epoll())
        ready = os.eventfd(1)
        stack.callback(os.close, ready)
        found.register(ready, select.EPOLLIN)
        page = stack.enter_context(byhand.page_that_never_comes())
        thread = threading.Thread(target=libc.epoll_wait, args=(found.fileno(), page))
        thread.start()
        until(lambda: holding.at_a_fault(os.getpid()), "it is at its page")
        held = stack.pop_all()
        patience = threading.Timer(byhand.LIMIT, held.close)
        patience.start()
        yield found.fileno()
        waited = not patience.is_alive()
        patience.cancel()
        held.close()
        thread.join()
        assert not waited, "somebody has waited for it"


def assert_serves(mount: Mount) -> None:
    """This would wait as long as the server does."""
    (mount.path / "mshare_info").read_text()
    assert os.listdir(mount.path)


def test_as_an_object(shared_mount: Mount, region: msharefs.Region, epoll: int) -> None:
    with refused(errno.ENODEV):
        region.map(0, SIZE, flags=FIXED, fd=epoll)
    assert_serves(shared_mount)


def test_as_an_object_in_a_message(
    shared_mount: Mount, region: msharefs.Region, epoll: int
) -> None:
    with byhand.both_ends(region.fd) as (ours, _):
        byhand.send(ours, lib.MSG_MAP, 0, SIZE, 3, FIXED, 0, fds=[epoll])
        assert_serves(shared_mount)
        assert byhand.answer(ours)[0] == -errno.ENODEV


@pytest.mark.parametrize("op", [lib.MSG_READY, lib.MSG_REJOIN, lib.MSG_FORKED])
def test_as_a_host_mm_or_another_part(
    shared_mount: Mount, region: msharefs.Region, epoll: int, op: int
) -> None:
    with byhand.both_ends(region.fd) as (ours, _):
        byhand.send(ours, op, 0, 1, fds=[epoll, epoll, epoll])
        assert_serves(shared_mount)
        assert byhand.answer(ours)[0] < 0


def test_as_an_owner(shared_mount: Mount, region: msharefs.Region, epoll: int) -> None:
    with refused(errno.EBADF):
        region.set_owner(epoll)
    assert_serves(shared_mount)
