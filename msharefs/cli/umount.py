"""``msharefs umount``: unmount, and return when the server is gone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click

from msharefs import mountpoint, processes

from . import _complete, tell

# A server ends within a second of the unmount; it may have many regions to free.
WAIT_SECONDS = 20.0


@click.command()
@click.option(
    "-l",
    "--lazy",
    is_flag=True,
    help="Detach now, even if files on it are open; the server ends with the last.",
)
@click.argument(
    "directory", type=Path, shell_complete=_complete.regions
)  # not click.Path, whose stat(2) a dead server can hang
def command(lazy: bool, directory: Path) -> None:
    """Unmount the msharefs on DIRECTORY and wait until its server has ended."""
    unmount(directory, lazy=lazy)


def unmount(directory: Path, *, lazy: bool) -> None:
    """Unmount; OSError with a sentence if that cannot be."""
    resolved = mountpoint.resolve(directory)
    mount = mountpoint.covering(resolved)
    if mount is None or mount.fstype != mountpoint.FSTYPE:
        raise OSError(
            errno.EINVAL,
            "no msharefs is mounted here (see `findmnt -t fuse.msharefs`)",
            str(directory),
        )
    if mountpoint.probe(resolved, waiting=tell) != "alive":  # there is nobody to ask or to wait for
        mountpoint.take_away(resolved, mount, lazy=lazy)
        return
    server = mountpoint.open_server(resolved)
    try:
        who = "" if lazy else _attached(server, resolved)
        if who:
            raise OSError(
                errno.EBUSY,
                f"in use: attached to its regions are {who}: end them, or unmount with --lazy: "
                "they then wait for the next mount",
                str(directory),
            )
        mountpoint.take_away(resolved, mount, lazy=lazy)
        if (
            server.pidfd >= 0
            and not lazy
            and not mountpoint.wait_for_end(server.pidfd, WAIT_SECONDS)
        ):
            raise OSError(
                errno.ETIMEDOUT,
                f"unmounted, but its server (process {server.pid}) has not ended after "
                f"{WAIT_SECONDS:.0f} s: kill it if it does not end by itself",
                str(directory),
            )
    finally:
        if server.pidfd >= 0:
            os.close(server.pidfd)


def _attached(server: mountpoint.Server, directory: Path) -> str:
    """Who is attached to its regions, for a sentence; empty: nobody."""
    if not server.attached:
        return ""
    if server.pidfd < 0:
        return "processes of another pid namespace"  # whose numbers are not ours
    pids = set(mountpoint.attached_processes(directory))
    # Nobody: these are others' processes, or they have ended since they were counted.
    return processes.listed(pids) if pids or mountpoint.attachments(directory) else ""
