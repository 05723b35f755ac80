"""A request that the kernel takes back: its caller is killed after the server has heard of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import lib

from support import wire
from support.traced import TracedThread

if TYPE_CHECKING:
    from support.server import Mount

READ = 0  # asm/unistd_64.h


def about_to_read(thread: TracedThread) -> str:
    """Of what a thread that stands before read(2) wants to read."""
    words = Path(f"/proc/{thread.tid}/syscall").read_text().split()
    assert words[0] == str(READ)
    return os.readlink(f"/proc/{thread.tid}/fd/{int(words[1], 16)}")


@pytest.mark.mount("quantum=2M")
def test_nobody_waits_for_the_next_request(mount: Mount) -> None:
    """Others have asked before it, and no request may come after it."""
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 << 20)
        with wire.connected(region) as other:
            with TracedThread(mount.pid) as server:
                caller = os.fork()
                if not caller:
                    os.statvfs(mount.path)
                    os._exit(1)
                server.stop_at(before=READ)
                while about_to_read(server) != "/dev/fuse":
                    server.stop_at(before=READ)
                os.kill(caller, signal.SIGKILL)
                _, status = os.waitpid(caller, 0)
                assert os.WIFSIGNALED(status)
            wire.send(other, lib.MSG_STAT)
            assert wire.answer(other)[0] == 0
