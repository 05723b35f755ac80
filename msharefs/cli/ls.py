"""``msharefs ls DIR``."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import units

from . import _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator

# Left out where there is no room for them, the first first.
SPARE = ("owner", "mappings", "resident")
NUMBERS = ("size", "mappings", "resident", "page tables", "clients")


def regions(directory: str, recursive: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of each region in a directory, sorted by name; with those below if asked."""
    try:
        entries = sorted(os.scandir(directory), key=lambda found: found.name)
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise _region.gone(directory) from None
        raise
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # unlinked since the directory was read
        if stat.S_ISDIR(status.st_mode) and recursive:
            yield from regions(entry.path, recursive)
        elif stat.S_ISREG(status.st_mode) and entry.name != _region.INFO_NAME:
            yield entry.path, status


def entry(path: str, name: str, status: os.stat_result) -> dict[str, Any] | None:
    """A region's stat under the name it has here; None if it was unlinked meanwhile.

    If it may not be opened, only its name, its size and the reason.
    """
    try:
        return {**_region.ask(path, "stat"), "name": name}
    except FileNotFoundError:
        return None
    except PermissionError as error:
        return {
            "name": name,
            "size_bytes": status.st_size,
            "error": os.strerror(error.errno or errno.EACCES),
        }


def row(region: dict[str, Any]) -> list[str]:
    """One region as the cells of the table for people."""
    name = _show.printable(region["name"])
    size = _show.region_size(region["size_bytes"])
    if "error" in region:
        return [name, size, "", "", "", "", region["error"]]
    return [
        name,
        size,
        str(region["vmas"]),
        units.size(region["rss_bytes"]),
        units.size(region["page_table_bytes"]),
        str(region["clients"]),
        f"pid {region['owner']['pid']}",
    ]


@click.command()
@click.argument("directory")
@click.option("-R", "--recursive", is_flag=True, help="Also list the directories below.")
@_show.json_option
def command(directory: str, recursive: bool, as_json: bool) -> None:
    """List the regions of a directory."""
    if not stat.S_ISDIR(_region.look(directory).st_mode):
        raise NotADirectoryError(
            errno.ENOTDIR,
            f"{directory} is not a directory; `msharefs stat {directory}` shows a single region",
        )
    found = (
        entry(path, os.fspath(Path(path).relative_to(directory)), status)
        for path, status in regions(directory, recursive)
    )
    listed = [region for region in found if region is not None]
    if as_json:
        _show.print_json(listed)
        return
    if not listed:
        click.echo("no regions")
        return
    lines = _show.table(
        "name", "size", "mappings", "resident", "page tables", "clients", "owner", right=NUMBERS
    )
    for region in listed:
        lines.add_row(*row(region))
    _show.show(lines, SPARE)
