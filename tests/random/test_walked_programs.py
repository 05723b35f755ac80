"""What random programs leave of a region is walked by a processor, in many address spaces.

Where there is no KVM, or none that can do it, the walk must end in the sentence that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from msharefs.lab import export, walk

from .test_random_programs import PHASES, Programs, world
from support.rawmm import RW, A, D, P
from support.walking import KVM, SAID

if TYPE_CHECKING:
    from support.program import World

__all__ = ["world"]  # the fixture

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")
RUNS, STEPS, SPACES = 15, 20, 3


class Walked(Programs):
    """As they are, and each region is walked before it is taken down."""

    def _check(self) -> None:
        if self._leaves():
            self._walk()
        super()._check()

    def _leaves(self) -> list[int]:
        """The entries of the region's own memory."""
        return [
            int(entry)
            for mapping in export.look(self.run.region)
            if mapping.name == "anon"
            for entry in mapping.leaves["entry"]
        ]

    def _walk(self) -> None:
        path = self.run.region.path
        if not KVM:
            with pytest.raises(OSError, match=SAID):
                walk.run(path, SPACES, check=True, wait_seconds=0, running=lambda: None)
            return
        found = walk.run(path, SPACES, check=True, wait_seconds=0, running=lambda: None)
        assert found["passed"], found
        leaves = self._leaves()
        readable = [entry for entry in leaves if entry & P]
        writable = [entry for entry in readable if entry & RW]
        assert found["pages"] == len(leaves)
        assert found["visited_pages"] == SPACES * (len(readable) + len(writable))
        assert all(entry & A for entry in readable), "pagetable shows what the walk has set"
        assert all(entry & D for entry in writable)


@pytest.mark.timeout(500)
def test_what_random_programs_leave_is_walked(world: World) -> None:
    run_state_machine_as_test(
        lambda: Walked(world),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            derandomize=True,
            deadline=None,
            phases=PHASES[:3],
            suppress_health_check=list(HealthCheck),
        ),
    )
