"""Looking for clients that are gone, in the server's own process."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from msharefs import proc, processes
from msharefs.native import lib
from msharefs.server.hostmm import HostMM
from msharefs.server.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUANTUM = 2 << 20
GONE = 0xFFFFFFFF
ELSEWHERE = 0xFFFFFFFF << 32
"""Some pid namespace, in a slot."""
LIMIT = 30
MANY = 64
STEPS = 40
"""More than a look has."""


@pytest.fixture
def make(public_tmp: Path) -> Iterator[Callable[[int], HostMM]]:
    """Makes a region without a client, by an owner that started then."""
    made = []

    def make(started: int) -> HostMM:
        made.append(HostMM.make("r", public_tmp, 5, QUANTUM, QUANTUM, Owner(1, started, "")))
        return made[-1]

    yield make
    for host in made:
        host.close()


class CalledOff(trio.abc.Instrument):
    """Cancels a scope at the n-th step of its task."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.scope = trio.CancelScope()
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: Any) -> None:
        self.left -= task is self._task
        if not self.left:
            self.scope.cancel()


def test_a_look_that_is_called_off(make: Callable[[int], HostMM]) -> None:
    """The next one finds what it would have found, whatever the step."""
    host = make(1)

    async def main() -> None:
        for step in range(1, STEPS):
            assert lib.slot_claim(host.mm, GONE, 1) == 0
            called_off = CalledOff(step)
            trio.lowlevel.add_instrument(called_off)
            with called_off.scope:
                await host.clients.reap_dead()
            trio.lowlevel.remove_instrument(called_off)
            if called_off.left > 0:
                return
            with trio.fail_after(20):
                while host.attached():
                    await host.clients.reap_dead()
        pytest.fail("a look has more steps than the test has")

    trio.run(main)


def test_a_region_that_is_closed_before_a_look_has_ended(
    make: Callable[[int], HostMM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process kept the look waiting for longer than anybody waits for it."""
    closed, looked = threading.Event(), threading.Event()

    class Census:
        def __init__(self) -> None:
            assert closed.wait(LIMIT)

        def find(self, *_process: int) -> list[int]:
            looked.set()
            return []

    monkeypatch.setattr(processes, "Census", Census)
    host = make(1)
    assert lib.slot_claim(host.mm, GONE, 1) == 0
    trio.run(host.clients.reap_dead, clock=trio.testing.MockClock(autojump_threshold=0))
    host.close()
    closed.set()
    assert looked.wait(LIMIT)


def test_a_look_while_another_one_is_at_work(
    make: Callable[[int], HostMM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say that a process is attached only because somebody asks for it already."""
    free, at_work = threading.Event(), threading.Event()

    class Census:
        def __init__(self) -> None:
            at_work.set()
            assert free.wait(LIMIT)

        def find(self, *_process: int) -> list[int]:
            return []

    async def second(host: HostMM) -> None:
        await host.clients.reap_dead(connected=True, seconds=LIMIT / 3)
        assert not host.attached()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(host.clients.reap_dead, seconds=LIMIT / 3))
            try:
                assert await trio.to_thread.run_sync(at_work.wait, LIMIT)
                nursery.start_soon(second, host)
                await trio.testing.wait_all_tasks_blocked()
            finally:
                free.set()

    monkeypatch.setattr(processes, "Census", Census)
    host = make(1)
    assert lib.slot_claim(host.mm, GONE, 1) == 0
    trio.run(main)


def test_many_looks_that_one_user_holds_up(
    public_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's dead are found all the same."""
    free, held = threading.Event(), threading.Semaphore(0)

    class Census:
        def __init__(self) -> None:
            held.release()
            assert free.wait(LIMIT)

        def find(self, *_process: int) -> list[int]:
            return []

    async def main(theirs: list[HostMM], ours: HostMM) -> None:
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patch:
                patch.setattr(processes, "Census", Census)
                for host in theirs:
                    nursery.start_soon(host.clients.reap_dead)
                for _ in theirs:
                    assert await trio.to_thread.run_sync(partial(held.acquire, timeout=LIMIT))
            try:
                await ours.clients.reap_dead(seconds=LIMIT / 3)
                assert not ours.attached()
            finally:
                free.set()

    with contextlib.ExitStack() as stack:
        made = []
        for number in range(MANY + 1):
            host = HostMM.make("r", public_tmp, number, QUANTUM, QUANTUM, Owner(1, 1, ""))
            stack.callback(host.close)
            host.clients.lane.user = 1 if number else 2
            assert lib.slot_claim(host.mm, GONE, 1) == 0
            made.append(host)
        trio.run(main, made[1:], made[0])


@pytest.mark.parametrize(("started", "believed"), [(1, True), (1 << 62, False)])
def test_a_process_of_which_nothing_is_known(
    make: Callable[[int], HostMM], monkeypatch: pytest.MonkeyPatch, *, started: int, believed: bool
) -> None:
    """Neither its namespace nor its mappings are ours to see: it has to be as young as the region.

    The slot does not say when it started.
    """
    ours = proc.pid_namespace("self")

    def pid_namespace(pid: proc.Process) -> int:
        if pid != "self":
            raise PermissionError(errno.EACCES, f"process {pid}")
        return ours

    monkeypatch.setattr(proc, "pid_namespace", pid_namespace)
    monkeypatch.setattr(processes, "times_mapped", lambda _pid, _file: None)
    host = make(started)
    with subprocess.Popen(["sleep", "60"]) as process:
        number = int(proc.status(process.pid, "NSpid").split()[-1])
        assert lib.slot_claim(host.mm, ELSEWHERE | number, 0) == 0
        trio.run(partial(host.clients.reap_dead, seconds=30))
        assert host.attached() == believed
        process.kill()
