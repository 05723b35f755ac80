"""Stopping processes, as a debugger does, in the worst places."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import msharefs

from .hostview import inside_faults, is_changing, number_of
from .proc import shadows, state, tasks
from .wait import until

if TYPE_CHECKING:
    from pathlib import Path

    from .actor import Actor
    from .server import Mount


def stop_all(pid: int) -> None:
    """SIGSTOP to a process and its shadows, as if its cgroup were frozen; waits until they stand.

    The shadows first: so a process can stand in the middle of a fault.
    """
    all_of_it = [*(int(shadow.name) for shadow in shadows(pid)), pid]
    for each in all_of_it:
        os.kill(each, signal.SIGSTOP)
    for each in all_of_it:
        until(lambda each=each: all(state(it) == "T" for it in tasks(each)), f"{each} stands")


def go_on_all(pid: int) -> None:
    """SIGCONT, to those that are there."""
    for each in (*(int(shadow.name) for shadow in shadows(pid)), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)


def stop(actor: Actor) -> None:
    """A stopped client, which answers nobody."""
    stop_all(actor.pid)


def go_on(actor: Actor) -> None:
    """It runs again."""
    go_on_all(actor.pid)


def kill(actor: Actor) -> None:
    """SIGKILL to a process that stands, and to its shadows."""
    for shadow in shadows(actor.pid):
        os.kill(int(shadow.name), signal.SIGKILL)
    actor.kill()


def stop_inside_a_fault(actor: Actor, mount: Mount, ident: int) -> None:
    """Stop a process that faults in region `ident` all the time, until it stands inside of one."""
    for _ in range(1000):
        stop(actor)
        if actor.pid in inside_faults(mount, ident):
            return
        go_on(actor)
        time.sleep(0.001)  # otherwise it may stand there only because it has no processor
    raise AssertionError("it was never stopped inside a fault")


def kill_in_a_change(mount: Mount, path: Path, change: str, start: int, size: int) -> None:
    """Kill the server while `change` (unmap, map) of a region has begun and cannot end."""
    number = number_of(path)

    def begin() -> None:
        # The server dies under it.
        with contextlib.suppress(OSError), msharefs.open(path) as region:
            region.unmap(start, size) if change == "unmap" else region.map(start, size)

    changer = threading.Thread(target=begin)
    changer.start()
    until(lambda: is_changing(mount, number), "the change has begun")
    mount.kill()
    changer.join(20)
    assert not changer.is_alive()
