"""``msharefs mount``: mount, and detach when the mount works."""

from __future__ import annotations

from pathlib import Path

import click

from msharefs import mountpoint
from msharefs.server import server
from msharefs.server.options import BadOptionError, parse

from . import tell


@click.command()
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option(
    "-o",
    "options",
    metavar="OPTS",
    multiple=True,
    help="quantum=512G|1G|2M, size=SIZE and huge=always|advise|within_size|never (of the tmpfs of "
    "root's own), "
    "state=DIR (another place, on tmpfs), owner=file|process|thread, quirks=v3, "
    "fault_around=PAGES, faults=linux|watched, passthrough=no, budget=SIZE (of its own page "
    "tables, for each client), "
    "the limits regions=COUNT, user_regions=COUNT (of a user), vmas=COUNT (of a region), "
    "clients=COUNT, connections=COUNT (of a user), memory=SIZE (mapped in all regions; "
    "`msharefs stat DIRECTORY` shows them), "
    "and those of any mount: ro, noexec, allow_other ...; separated by commas.",
)
@click.option("--debug", is_flag=True, help="Log every request that fails, and more.")
@click.argument("directory", type=Path)  # not click.Path, whose stat(2) a dead server can hang
def command(foreground: bool, options: tuple[str, ...], debug: bool, directory: Path) -> None:
    """Mount msharefs on DIRECTORY.

    Region files are then made with open(2), sized with ftruncate(2), filled by ioctl(2) and
    attached. The command returns when the mount works; the server stays in the background until
    `msharefs umount DIRECTORY`, umount(8) or SIGTERM.
    """
    resolved = mountpoint.resolve(directory)
    try:
        chosen = parse(options, resolved, foreground=foreground, debug=debug)
    except BadOptionError as error:
        raise click.UsageError(str(error)) from None
    mountpoint.make_free(resolved, tell)
    server.start(chosen)
