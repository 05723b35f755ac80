"""What the server makes for a client is freed when the client has gone, and not by the collector.

The collector looks at old objects only when thousands have been added to them. Until then the
server would grow, and what is freed then leaves holes.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
from typing import TYPE_CHECKING

import msharefs
from msharefs.native import lib

from support import proc, wire
from support.calls import refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from support.server import Mount

PAGE, ARENA = 4096, 64 << 20
TIMES = 5
SAYS = "garbage: "
# At the signal the server says what the collector has found since the last one, by type.
TELLS = f"""
import collections, gc, json, os, signal, sys

def tell(*_):
    gc.collect()
    names = [type(each).__qualname__ for each in gc.garbage if "msharefs" in type(each).__module__]
    gc.garbage.clear()
    gc.set_debug(gc.DEBUG_SAVEALL)
    os.write(2, f"{SAYS}{{json.dumps(collections.Counter(names))}}\\n".encode())

if "mount" in sys.orig_argv:
    signal.signal(signal.SIGRTMIN, tell)
"""


def told(mount: Mount) -> dict[str, int]:
    before = mount.text().count(SAYS)
    os.kill(mount.pid, signal.SIGRTMIN)
    until(lambda: mount.text().count(SAYS) > before, "the server says so")
    found: dict[str, int] = json.loads(mount.text().rpartition(SAYS)[2].partition("\n")[0])
    return found


def arenas(pid: int) -> list[proc.Mapping]:
    """malloc's memory for threads: 64 MiB each, of which the rest is reserved."""
    found = proc.maps(pid)
    return [
        one
        for one, rest in itertools.pairwise(found)
        if not one.start % ARENA and rest.end - one.start == ARENA and rest.prot == "---p"
    ]


def in_children(work: Callable[[], object]) -> None:
    """Some processes do it, one after the other, and are killed."""
    for _ in range(TIMES):
        pid = os.fork()
        if not pid:
            try:
                work()
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status)


def use(region: msharefs.Region) -> None:
    """In all ways in which connections come and go."""
    for _ in range(TIMES):
        region.detach(region.attach())
        region.stat()
        region.unmap(0, PAGE)
        region.map(0, PAGE)
        with refused(errno.ENOTTY), wire.connected(region) as sock:
            wire.send(sock, lib.MSG_VERB, 1)
            raise OSError(-wire.answer(sock)[0], "as the server says")
        with wire.connected(region) as sock:  # is closed with an answer in it: ECONNRESET
            wire.send(sock, lib.MSG_STAT)
            sock.recv(1, socket.MSG_PEEK)
    in_children(region.attach)
    view = region.attach()
    in_children(lambda: view[0])
    region.detach(view)


def test_the_collector_finds_nothing(
    mounts: Callable[..., Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mount = mounts("quantum=2M")
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 << 20)
        region.map(0, PAGE)
        use(region)
        told(mount)
        use(region)
        until(lambda: not region.stat()["clients"], "the server knows that all have gone")
        assert told(mount) == {}
    assert not arenas(mount.pid)
