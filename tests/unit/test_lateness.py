"""Clients that do not answer: how long they are waited for, and when they have an excuse.

Time is a clock of the test's own.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from msharefs import proc, processes
from msharefs.native import lib
from msharefs.server import lateness, revocation
from msharefs.server.changing import GRACE_SECONDS
from msharefs.server.hostmm import HostMM
from msharefs.server.lateness import EXCUSED_SECONDS
from msharefs.server.owners import Owner

from support.calls import refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

QUANTUM = 2 << 20
PLENTY = 1 << 20


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def test_an_excuse(monkeypatch: pytest.MonkeyPatch, sleeper: int) -> None:
    assert 1 <= proc.runnable() < PLENTY
    monkeypatch.setattr(proc, "runnable", lambda: PLENTY)
    assert lateness.excused([sleeper])
    assert not lateness.excused([])
    assert not lateness.excused([0])
    os.kill(sleeper, signal.SIGSTOP)
    until(lambda: proc.stat(sleeper).state == "T", "it is stopped")
    assert not lateness.excused([sleeper])
    assert lateness.excused([sleeper, os.getpid()])
    monkeypatch.setattr(proc, "runnable", lambda: len(os.sched_getaffinity(0)))
    assert not lateness.excused([os.getpid()])


class Mute:
    """A client that hears everything and says nothing."""

    pid = os.getpid()
    started, mark = processes.start_time(pid), processes.mark(pid)
    number = 0

    async def ask(self, *_: int) -> int:
        return await trio.sleep_forever()


class Clients:
    name = "region 1"

    def __init__(self) -> None:
        self.connected: dict[int, Any] = {0: Mute()}


def seconds(work: Callable[[], Awaitable[object]]) -> float:
    async def main() -> float:
        start = trio.current_time()
        await work()
        return trio.current_time() - start

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("excused", "expected"), [(False, revocation.ANSWER_SECONDS), (True, EXCUSED_SECONDS)]
)
def test_an_answer(monkeypatch: pytest.MonkeyPatch, *, excused: bool, expected: float) -> None:
    monkeypatch.setattr(lateness, "excused", lambda pids: excused and list(pids) == [Mute.pid])

    async def ask() -> None:
        said = await revocation._ask(Clients(), [0], lib.MSG_REVOKE)  # type: ignore[arg-type]
        assert "does not answer" in said[0]

    assert seconds(ask) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("excused", "expected"), [(False, GRACE_SECONDS), (True, GRACE_SECONDS + EXCUSED_SECONDS)]
)
def test_the_end_of_a_fault(
    monkeypatch: pytest.MonkeyPatch, public_tmp: Path, *, excused: bool, expected: float
) -> None:
    monkeypatch.setattr(lateness, "excused", lambda pids: excused and list(pids) == [Mute.pid])
    me = os.getpid()
    host = HostMM.make("r", public_tmp, 5, QUANTUM, QUANTUM, Owner(me, 1, ""))
    # As long as it is mapped a second time, a slot that names us is a client's.
    monkeypatch.setattr(os, "getpid", lambda: 0)
    try:
        assert lib.slot_claim(host.mm, me, processes.start_time(me)) == 0
        host.clients.connect(0, host.clients.claim(0), Mute())  # type: ignore[arg-type]
        trio.run(lambda: host.map(0, QUANTUM, lib.VMA_READ))
        lib.slot_enter(host.mm, 0)

        async def unmap() -> None:
            with refused(errno.EBUSY):
                await host.unmap(0, QUANTUM)

        # The clock jumps also while a thread looks at the process, as far as that may take.
        assert expected <= seconds(unmap) < expected + EXCUSED_SECONDS / 2
    finally:
        host.close()
