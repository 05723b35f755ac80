"""Things that a test must not leave behind: processes, mounts, files in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from . import fusectl, namespace

# How long the shadow of a program that has ended may take to end; and one that has no name yet.
SHADOW_SECONDS, NEW_SECONDS = 6.0, 2.0

# All programs that the tests start inherit this: a program that became a daemon is still known to
# be ours.
TOKEN = "MSHAREFS_TEST_RUN"  # noqa: S105  # no secret

kept: set[int] = set()
"""Processes that stay until the whole run ends."""


def mark() -> None:
    """Mark all programs started from now on as belonging to this run."""
    os.environ[TOKEN] = str(os.getpid())


@dataclass(frozen=True)
class Snapshot:
    """Everything that exists now and could be left behind."""

    pids: frozenset[int]
    """Of all processes: whose they are is asked of the new ones only. There are few."""
    mounts: frozenset[namespace.MountPoint]
    shm: frozenset[str]


def snapshot() -> Snapshot:
    """Look at all processes, all mounts and /dev/shm."""
    return Snapshot(
        frozenset(psutil.pids()),
        frozenset(namespace.mounts()),
        frozenset(os.listdir(namespace.SHM)),
    )


def clean(before: Snapshot) -> list[str]:
    """Remove everything that is new since `before`, and name it."""
    # A shadow ends when its program has ended, which is a moment later.
    start = time.monotonic()
    while True:
        now = snapshot()
        left = [process for pid in now.pids - before.pids - kept if (process := _ours(pid))]
        limit = SHADOW_SECONDS if any(map(_is_shadow, left)) else NEW_SECONDS
        if not left or time.monotonic() - start > limit:
            break
        time.sleep(0.01)
    found = []
    for process in left:
        command = _command(process)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            found.append(f"process {process.pid} is left: {command}")
    psutil.wait_procs(left, timeout=5)
    for mount in sorted(now.mounts - before.mounts, key=lambda each: each.path, reverse=True):
        found.append(f"a mount is left: {mount.path} ({mount.fstype})")
        if mount.fstype.startswith("fuse"):
            fusectl.abort(mount.minor)
        namespace.detach(Path(mount.path))
    found += [f"{namespace.SHM / name} is left" for name in sorted(now.shm - before.shm)]
    return found


def _ours(pid: int) -> psutil.Process | None:
    """A living process that a test has started, even if it is a daemon by now.

    A zombie holds nothing but its number: it is not left behind, only not waited for.
    """
    mine = f"{TOKEN}={os.environ.get(TOKEN)}\0".encode()
    # Some end meanwhile, or are not ours to read.
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and (
            mine in Path(f"/proc/{pid}/environ").read_bytes()
            or psutil.Process() in process.parents()
        ):
            return process
    return None


def _is_shadow(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("msharefs: ")
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(gone)"
