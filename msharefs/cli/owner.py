"""``msharefs owner REGION PID``."""

from __future__ import annotations

import errno
import os

import click

import msharefs

from . import _complete, _region
from .stat import owner_line


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@click.argument("pid", type=click.IntRange(min=1))
def command(region: str, pid: int) -> None:
    """Hand REGION to process PID, which owns it from now on.

    Whether the region ends with it is decided by the mount's `-o owner=`. A region's owner can hand
    it over by itself (mshare_set_owner(3)); this is for root, and for the user of the server.
    """
    _region.check_region(region)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise OSError(errno.ESRCH, f"there is no process {pid}") from None
    try:
        with msharefs.open(region) as opened:
            before = opened.stat()["owner"]
            opened.set_owner(pidfd)
            after = opened.stat()["owner"]
    finally:
        os.close(pidfd)
    click.echo(f"before: {owner_line(before)}")
    click.echo(f"now:    {owner_line(after)}")
