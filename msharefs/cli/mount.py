"""``msharefs mount``: mount, and detach when the mount works."""

from __future__ import annotations

from pathlib import Path

import click

from msharefs import mountpoint
from msharefs.server import server
from msharefs.server.option_texts import SHORT
from msharefs.server.options import KEYS, BadOptionError, parse

from . import _complete, _examples, tell

EPILOG = "\n".join(
    (
        "\b",
        "Options of -o:",
        *(f"  {key + '=' + values:37}{SHORT[key]}" for key, values in KEYS.items()),
    )
)


@click.command(epilog=f"{EPILOG}\n\n{_examples.epilog('mount')}")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option(
    "-o",
    "options",
    metavar="OPTS",
    multiple=True,
    shell_complete=_complete.options,
    help="Options, separated by commas: those below, and those of any mount, as ro, noexec.",
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
