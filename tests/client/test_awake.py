"""A thread that stays awake for the next fault or request does not do so for long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.proc import service_thread, state
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor
    from support.server import Mount

QUANTUM = 2 << 20
WATCHED = 0.5  # seconds
IDLE = 0.05  # of them, for regular work


def cpu_seconds(task: Path) -> float:
    """Time on a CPU so far."""
    return int((task / "schedstat").read_text().split()[0]) / 1e9


@pytest.mark.alone
def test_after_a_burst_they_sleep(
    shared_mount: Mount, actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region]
) -> None:
    region = make_region(QUANTUM)
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    assert actor.call("fill", base, QUANTUM, 1, 0) == []
    for _ in range(100):
        region.unmap(0, 4096)
    watched = [service_thread(actor.pid), Path(f"/proc/{shared_mount.pid}")]
    for task in watched:
        until(lambda task=task: state(task) == "S", f"{task} sleeps")
    before = [cpu_seconds(task) for task in watched]
    time.sleep(WATCHED)
    for task, spent in zip(watched, before, strict=True):
        assert cpu_seconds(task) - spent < IDLE, task
