"""``msharefs ls DIR``."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import mountpoint, summary, units

from . import _complete, _json, _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator

# Left out where there is no room for them, the first first.
SPARE = ("owner", "mappings", "resident")
NUMBERS = ("size", "mappings", "resident", "page tables", "clients")
SORTS = {
    "name": "name",
    "size": "size_bytes",
    "resident": "rss_bytes",
    "page_tables": "page_table_bytes",
    "clients": "clients",
}


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


def without_names(directory: str) -> Iterator[dict[str, Any]]:
    """Regions that no directory shows: adopted memory, nameless ones, and those unlinked in use.

    Of other users only root sees them.
    """
    from msharefs.server import describe

    mount = mountpoint.above(Path(directory))
    if mount is None:  # it is gone meanwhile
        return
    pids: list[int] | None = None
    for each in summary.regions(mount.directory):
        if each["adopted"] or each["unnamed"]:
            if each["adopted"]:  # nobody tells us who maps it
                if pids is None:
                    pids = mountpoint.attached_processes(mount.directory)
                found = describe.adopters(each["memory"], pids)
                each["clients"] = sum(client["kind"] != "unseen" for client in found)
            yield {
                "name": summary.title(each),
                "unnamed": True,
                "adopted": each["adopted"],
                **{key: each[key] for key in _SHARED},
                "owner": {"pid": each["owner_pid"]},
            }


_SHARED = ("size_bytes", "quantum_bytes", "vmas", "rss_bytes", "page_table_bytes", "clients",
           "counters")  # fmt: skip


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


def totals(listed: list[dict[str, Any]]) -> dict[str, int]:
    """The sums of those that may be seen."""
    return {
        "regions": len(listed),
        **{
            key: sum(region.get(key, 0) for region in listed)
            for key in ("size_bytes", "vmas", "rss_bytes", "page_table_bytes", "clients")
        },
    }


def total_row(total: dict[str, int]) -> list[str]:
    """The last line of the table."""
    return [
        f"{total['regions']} regions",
        units.size(total["size_bytes"]),
        str(total["vmas"]),
        units.size(total["rss_bytes"]),
        units.size(total["page_table_bytes"]),
        str(total["clients"]),
        "",
    ]


@click.command()
@click.argument("directory", shell_complete=_complete.regions)
@click.option("-R", "--recursive", is_flag=True, help="Also list the directories below.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Also list what has no name: adopted memory, regions made without one, and those that "
    "were unlinked while in use, of the whole mount.",
)
@_show.sort_option(SORTS)
@_show.json_option
def command(directory: str, recursive: bool, every: bool, sort: str, as_json: bool) -> None:
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
    if every:
        listed += without_names(directory)
    listed = _show.sorted_by(listed, SORTS[sort])
    total = totals(listed)
    if as_json:
        shown = [_json.region(region) for region in listed]
        document = {"directory": directory, "regions": shown, "total": total}
        _show.print_json(_json.document("ls", document))
        return
    if not listed:
        click.echo("no regions")
        return
    lines = _show.table(
        "name", "size", "mappings", "resident", "page tables", "clients", "owner", right=NUMBERS
    )
    for region in listed:
        lines.add_row(*row(region))
    if len(listed) > 1:
        lines.add_row(*total_row(total))
    _show.show(lines, SPARE)
