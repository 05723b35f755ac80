"""``msharefs stat R`` and ``msharefs stat MOUNT``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import mountpoint, units

from . import _complete, _json, _patience, _region, _show, _watch

if TYPE_CHECKING:
    from msharefs.documents import Owner


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines for people, from the document of ``--json``."""
    owner, counters = found["owner"], found["counters"]
    frames = ", ".join(f"{level} {count}" for level, count in found["table_frames"].items())
    return [
        ("name", _show.printable(found["name"])),
        ("size", f"{_show.region_size(found['size_bytes'])} ({found['size_bytes']} bytes)"),
        ("quantum", units.size(found["quantum_bytes"])),
        ("mappings", str(found["vmas"])),
        ("resident", units.size(found["rss_bytes"])),
        ("page tables", f"{units.size(found['page_table_bytes'])} ({frames})"),
        ("clients", str(found["clients"])),
        ("budget", _budget(found)),
        ("owner", owner_line(owner)),
        ("charged to it", _charges(owner)),
        ("pages are paid by", _payer(found["charge"])),
        *((name.replace("_", " "), str(count)) for name, count in counters.items()),
        ("as in vmstat", ", ".join(f"{name} {n}" for name, n in found["vmstat"].items())),
    ]


def _budget(found: dict[str, Any]) -> str:
    """How much clients keep of their own page tables."""
    asked, grown = found["budget"]["bytes"], found["budget"]["clients_grown"]
    text = f"{units.size(asked)} of its own page tables for each client" if asked else "none"
    return f"{text}; {grown} of {found['clients']} need more" if grown else text


def owner_line(owner: Owner) -> str:
    """Who owns a region, and what that means for it."""
    maker = "thread" if owner["kind"] == "thread" else "pid"
    fate = {
        "file": "",
        "process": "; the region ends with it",
        "thread": "; the region ends with it",
        "creator": "; the region ends with it, or when it closes the region",
        "gone": "; gone, and the region has ended",
    }[owner["kind"]]
    return f"{maker} {owner['pid']}, cgroup {owner['cgroup']}{fate}"


def _charges(owner: dict[str, Any]) -> str:
    data, tables = owner["charged_data_bytes"], owner["charged_table_bytes"]
    return f"{units.size(data)} of data, {units.size(tables)} of page tables"


def _payer(charge: dict[str, Any]) -> str:
    """Whose memory cgroup Linux really charges."""
    if charge["to"] == "toucher":
        return "whoever touches them first"
    if not charge["why"]:
        return "the owner"
    return f"the owner; but {units.size(charge['left_bytes'])} by others: {charge['why']}"


# What is counted, and whose largest count is shown.
_OF_MOUNT = {
    "regions": "",
    "user_regions": "of the user with the most; root and the server's user may have more",
    "vmas": "of the region with the most mappings",
    "clients": "attachments of all regions",
    "connections": "of the user with the most; root and the server's user may have more",
    "memory": "mapped, in all regions",
    "descriptors": "of the server: RLIMIT_NOFILE, no option",
}


def mount_rows(limits: dict[str, dict[str, int]]) -> list[tuple[str, str, str, str]]:
    """The lines for people of a mount: name, in use, limit, whose."""

    def text(name: str, count: int) -> str:
        return units.size(count) if name == "memory" else str(count)

    return [
        (
            name,
            text(name, each["used"]),
            text(name, each["limit"]) if each["limit"] else "none",
            _OF_MOUNT[name],
        )
        for name, each in limits.items()
    ]


def place_row(place: dict[str, Any]) -> str:
    """The line for people of where the regions are."""
    kind = "a tmpfs of the server's own" if place["own_tmpfs"] else "a tmpfs that is shared"
    most = f"of {units.size(place['limit_bytes'])}" if place["limit_bytes"] else "without a limit"
    notes = "" if place["executes"] else ", noexec"
    notes += ", and it is GONE: unmount, and mount again" if place["gone"] else ""
    return (
        f"kept in {_show.printable(place['state'])}: {kind}, "
        f"{units.size(place['used_bytes'])} used {most}{notes}"
    )


def _mount_document(directory: str) -> dict[str, Any]:
    found = {
        "mount": directory,
        "place": mountpoint.place(Path(directory)),
        "limits": mountpoint.limits(Path(directory)),
    }
    return _json.document("mount", found)


def _show_mount(found: dict[str, Any]) -> None:
    click.echo(place_row(found["place"]))
    lines = _show.table("limit (-o)", "used", "most", "", right=("used", "most"))
    for row in mount_rows(found["limits"]):
        lines.add_row(*row)
    _show.show(lines)


def _show_region(found: dict[str, Any], before: dict[str, Any] | None) -> None:
    lines = _show.table("", "", *(["added"] if before else []), right=("added",))
    lines.show_header = False
    grown = {
        **_watch.growth(found["counters"], before and before["counters"]),
        **_watch.growth(found, before),
    }
    by_title = {_TITLES.get(key, key.replace("_", " ")): each for key, each in grown.items()}
    for title, text in rows(found):
        added = by_title.get(title)
        lines.add_row(title, text, *([f"{added:+,}" if added else ""] if before else []))
    _show.show(lines)


_TITLES = {"vmas": "mappings", "rss_bytes": "resident", "page_table_bytes": "page tables"}


@click.command()
@click.argument("region", metavar="REGION|MOUNT", shell_complete=_complete.regions)
@_watch.option
@_watch.count_option
@_show.json_option
def command(region: str, watch: float | None, count: int | None, as_json: bool) -> None:
    """Show a region's size, page tables, owner and counters; or a mount's limits."""
    _patience.watch(Path(region))
    is_mount = os.path.isdir(region)
    if is_mount:
        _region.look(region)

    def look() -> dict[str, Any]:
        return _mount_document(region) if is_mount else dict(_region.describe(region, "stat"))

    for found, before in _watch.looks(look, watch, count):
        if as_json:
            document = found if is_mount else _json.document("stat", _json.region(found))
            _show.print_look(document, watched=watch is not None)
            continue
        if before is not None:
            click.echo()
        if is_mount:
            _show_mount(found)
        else:
            _show_region(found, before)
