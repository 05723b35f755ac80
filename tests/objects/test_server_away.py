"""A server that is killed: a process's mapped objects go on, accesses to others wait."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.actor import PAGE, maperr
from support.audit import assert_whole
from support.memory import QUANTUM
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
FILE = mmap.MAP_SHARED | 0x10  # MAP_FIXED


def waits(pid: int) -> bool:
    """A thread of the process is inside a page fault that userfaultfd(2) has not answered."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/wchan") as wchan:
            if "userfault" in wchan.read():
                return True
    return False


def test_faults_without_a_server(mount: Mount, actors: Callable[[], Actor], tmp_path: Path) -> None:
    path = mount.path / "r"
    with (tmp_path / "known").open("w+b") as known, (tmp_path / "new").open("w+b") as new:
        for number, file in enumerate((known, new)):
            file.truncate(64 * PAGE)
            os.pwrite(file.fileno(), bytes([10 + number]), 40 * PAGE)
        actor = actors()
        with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(2 * QUANTUM)
            base = actor.attach(actor.give(region.fd))
            region.map(0, 64 * PAGE, fd=known.fileno(), flags=FILE)
            region.map(QUANTUM, 64 * PAGE, fd=new.fileno(), flags=FILE)
        assert actor.call("load", base) == [0]
        mount.kill()
        # Another block of a file whose descriptor it has; a child inherits that.
        assert actor.call("load", base + 40 * PAGE) == [10]
        child = actor.fork(base + 40 * PAGE)
        assert child.finish() == [10]
        actor.start("load", base + QUANTUM + 40 * PAGE)
        child.start("store", base + QUANTUM + 1, 99)
        for pid in (actor.pid, child.pid):
            until(lambda pid=pid: waits(pid), "the file is asked for")
        mount.start()
        assert actor.finish() == [11]
        assert child.finish() == []
        assert os.pread(new.fileno(), 1, 1) == bytes([99])
        with msharefs.open(path) as region:
            until(lambda: len(region.describe("clients")) == 2, "both have come back")
            region.unmap(0, 64 * PAGE)
            for process in (actor, child):
                assert process.call("load", base) == maperr(base)
                assert process.call("load", base + QUANTUM + 40 * PAGE) == [11]
            assert_whole(region)
