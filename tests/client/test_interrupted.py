"""A signal handler may come at any instruction, and may fork, map and unmap."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import cc, libc
from support.audit import assert_whole
from support.steps import Stepped
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

SOURCE = Path(__file__).parents[1] / "programs" / "locker.c"


@pytest.mark.unsanitized("of a call with sanitizers it would step through several times as many")
def test_a_fork_in_a_handler_at_each_instruction_of_a_call(
    make_region: Callable[..., msharefs.Region], tmp_path: Path
) -> None:
    """It must not find the lock half taken: the child would have it for ever."""
    region = make_region()
    library = cc.build(SOURCE, tmp_path / "locker.so", "-shared", "-fPIC")
    locker = libc.load(library, "void stop_locking(int region);")
    with Stepped(locker.stop_locking, region.fd) as caller:
        blocked = [caller.blocks(signal.SIGUSR1)]
        while caller.step():
            blocked.append(caller.blocks(signal.SIGUSR1))
    assert not blocked[0]
    assert True in blocked, "the lock was taken"
    assert not blocked[-1]
    for count in (step for step, waits in enumerate(blocked) if not waits):
        with Stepped(locker.stop_locking, region.fd) as caller:
            assert all(caller.step() for _ in range(count))
            caller.interrupt(signal.SIGUSR1)
    until(lambda: not region.describe("clients"), "all have ended")
    assert_whole(region)
