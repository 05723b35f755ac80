"""Things that a test must not leave behind: processes, mounts, files in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from . import fusectl, namespace

# All programs that the tests start inherit this: a program that became a daemon is still known to
# be ours.
TOKEN = "MSHAREFS_TEST_RUN"  # noqa: S105  # no secret


def mark() -> None:
    """Mark all programs started from now on as belonging to this run."""
    os.environ[TOKEN] = str(os.getpid())


@dataclass(frozen=True)
class Snapshot:
    """Everything that exists now and could be left behind."""

    processes: frozenset[psutil.Process]  # compares pid and start time
    mounts: frozenset[namespace.MountPoint]
    shm: frozenset[str]


def snapshot() -> Snapshot:
    """Look at our living processes, all mounts and /dev/shm."""
    return Snapshot(
        frozenset(process for process in _ours() if _alive(process)),
        frozenset(namespace.mounts()),
        frozenset(os.listdir(namespace.SHM)),
    )


def clean(before: Snapshot) -> list[str]:
    """Remove everything that is new since `before`, and name it."""
    now = snapshot()
    found = []
    for process in now.processes - before.processes:
        found.append(f"process {process.pid} is left: {_command(process)}")
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(now.processes - before.processes, timeout=5)
    for mount in sorted(now.mounts - before.mounts, key=lambda each: each.path, reverse=True):
        found.append(f"a mount is left: {mount.path} ({mount.fstype})")
        if mount.fstype.startswith("fuse"):
            fusectl.abort(mount.minor)
        namespace.detach(Path(mount.path))
    found += [f"{namespace.SHM / name} is left" for name in sorted(now.shm - before.shm)]
    return found


def _ours() -> set[psutil.Process]:
    mine = f"{TOKEN}={os.environ.get(TOKEN)}\0".encode()
    found = set(psutil.Process().children(recursive=True))
    for pid in psutil.pids():
        # Some end meanwhile, or are not ours to read.
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if mine in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(psutil.Process(pid))
    return found - {psutil.Process()}


def _alive(process: psutil.Process) -> bool:
    """A zombie holds nothing but its number: it is not left behind, only not waited for."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(gone)"
