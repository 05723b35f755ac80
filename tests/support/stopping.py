"""Stopping processes, as a debugger does, in the worst places."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .hostview import inside_faults
from .wait import until

if TYPE_CHECKING:
    from .actor import Actor
    from .server import Mount


def stop(actor: Actor) -> None:
    """SIGSTOP; waits until all threads stand."""
    actor.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{actor.pid}/task")
    until(
        lambda: all(
            (task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks.iterdir()
        ),
        "the process stands",
    )


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
        time.sleep(0.001)  # else it may stand there for want of a processor
    raise AssertionError("it was never stopped inside a fault")
