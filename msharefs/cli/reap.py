"""``msharefs reap MOUNT|REGION``."""

from __future__ import annotations

import os
import stat

import click

from . import _complete, _region
from .ls import regions


def reap(path: str) -> int:
    """Ends the attachments of dead processes to one region; how many there were."""
    from msharefs.client import describe

    # Not by msharefs.open(), which asks for figures, and the dead are ended for those.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return int(describe(fd, path, "reap"))
    finally:
        os.close(fd)


@click.command()
@click.argument("path", metavar="MOUNT|REGION", shell_complete=_complete.regions)
def command(path: str) -> None:
    """End the attachments of dead processes to a region, or to all regions of a mount.

    The server does so every few seconds by itself.
    """
    if stat.S_ISDIR(_region.look(path).st_mode):
        names = [name for name, status in regions(path, recursive=True) if status.st_size]
    else:
        _region.check_region(path)
        names = [path]
    ended = sum(map(reap, names))
    click.echo(f"{ended} attachments of dead processes ended, in {len(names)} regions")
