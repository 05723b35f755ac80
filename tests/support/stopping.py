"""Stopping processes, as a debugger does, in the worst places."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING

import msharefs

from .hostview import inside_faults, is_changing, number_of
from .proc import state, tasks
from .wait import until

if TYPE_CHECKING:
    from pathlib import Path

    from .actor import Actor
    from .server import Mount


def stop(actor: Actor) -> None:
    """SIGSTOP; waits until all threads stand."""
    actor.process.send_signal(signal.SIGSTOP)
    until(lambda: all(state(task) == "T" for task in tasks(actor.pid)), "the process stands")


def go_on(actor: Actor) -> None:
    """SIGCONT."""
    actor.process.send_signal(signal.SIGCONT)


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
