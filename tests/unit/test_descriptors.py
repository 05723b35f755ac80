"""Answers of other people's file systems: in time, too late, refused."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing

from msharefs.server import descriptors

from support.calls import refused

if TYPE_CHECKING:
    import pytest


ME = os.getuid()


def test_an_answer_and_a_refusal() -> None:
    async def ask() -> None:
        assert await descriptors.elsewhere(lambda: 7, "this", user=ME) == 7
        with refused(errno.EBADF):
            await descriptors.elsewhere(lambda: os.fstat(-1), "this", user=ME)

    trio.run(ask)


def test_what_comes_too_late_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "ANSWER_SECONDS", 0.02)
    go_on, dropped = threading.Event(), threading.Event()

    def work() -> int:
        go_on.wait()
        return 7

    def drop(result: int) -> None:
        assert result == 7
        dropped.set()

    async def ask() -> None:
        with refused(errno.ETIMEDOUT):
            await descriptors.elsewhere(work, "this", drop, user=ME)
        assert not dropped.is_set()

    trio.run(ask)
    go_on.set()
    assert dropped.wait(10)


def test_what_comes_when_nobody_waits_any_more_is_dropped() -> None:
    go_on, dropped = threading.Event(), threading.Event()

    async def ask() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(
                        descriptors.elsewhere, go_on.wait, "this", lambda _: dropped.set(), user=ME
                    )
                )
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

    trio.run(ask)
    assert not dropped.is_set()
    go_on.set()
    assert dropped.wait(10)


def test_all_are_closed_even_if_one_is_not_open() -> None:
    first, second = os.pipe()

    async def close() -> None:
        await descriptors.close(first, 1 << 20, second, user=ME)

    trio.run(close)
    for fd in (first, second):
        with refused(errno.EBADF):
            os.fstat(fd)
