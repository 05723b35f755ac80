"""``msharefs smaps R``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from msharefs import proc, units

from . import _complete, _json, _region, _show, maps

if TYPE_CHECKING:
    from collections.abc import Iterator

# Fields of /proc/PID/smaps, with the names that they have in our document.
FIELDS = {
    "Size": "size",
    "KernelPageSize": "page_size",
    "MMUPageSize": "page_size",
    "Rss": "rss",
    "Pss": "pss",
    "Shared_Clean": "shared_clean",
    "Shared_Dirty": "shared_dirty",
    "Private_Clean": "private_clean",
    "Private_Dirty": "private_dirty",
    "Referenced": "referenced",
    "Anonymous": "anonymous",
    "Shared_Hugetlb": "shared_hugetlb",
    "Private_Hugetlb": "private_hugetlb",
    "Locked": "locked",
}
STATUS = ("RssShmem", "VmPTE", "VmLck")


class Window(NamedTuple):
    """A window, or the region itself: addresses, and where in the region it begins; bytes."""

    start: int
    end: int
    offset: int

    def shows(self, mapping: dict[str, Any]) -> bool:
        """Whether it has a mapping, which it then has whole."""
        size = self.end - self.start
        return bool(self.offset <= mapping["start"] < self.offset + size)


def lines(found: dict[str, Any], name: str, window: Window) -> Iterator[str]:
    """The lines for people: the window as a container, and each mapping in it."""
    container = {**window._asdict(), "prot": "rw-s", "object": name}
    yield maps.line(container)
    yield f"{'Size:':<16}{window.end - window.start >> 10:8} kB"
    yield "VmFlags: rd wr sh mr mw me ms de sd mshare container"
    for mapping in filter(window.shows, found["mappings"]):
        yield maps.line(_moved(mapping, window.start - window.offset))
        for field, key in FIELDS.items():
            yield f"{field + ':':<16}{mapping[key] >> 10:8} kB"
        yield f"VmFlags: {mapping['vm_flags']}"


def _moved(mapping: dict[str, Any], base: int) -> dict[str, Any]:
    return {**mapping, "start": base + mapping["start"], "end": base + mapping["end"]}


def status(found: dict[str, Any], pid: int | None) -> dict[str, dict[str, int]]:
    """RssShmem, VmPTE and VmLck in bytes: of the host mm, and of a process by four ways to count.

    "now": what Linux says; "without": no region's memory counts; "whole": each process has all of
    the host mm's, as with v3's smaps; "share": its share of it.
    """
    processes = max(1, found["processes"])
    host = {
        "RssShmem": sum(mapping["rss"] for mapping in found["mappings"]),
        "VmPTE": found["page_table_bytes"],
        "VmLck": found["locked_bytes"],
    }
    if pid is None:
        return {"host mm": host}
    own = [m for m in found["mappings"] if any(each.shows(m) for each in found["windows"])]
    share = {
        "RssShmem": sum(mapping["pss"] for mapping in own),
        "VmPTE": host["VmPTE"] // processes,
        "VmLck": sum(mapping["locked"] for mapping in own),
    }
    now = {field: _kilobytes(pid, field) for field in STATUS}
    without = {**now, "RssShmem": max(0, now["RssShmem"] - resident(found, pid))}
    return {
        "host mm": host,
        "now": now,
        "without": without,
        "whole": {field: without[field] + host[field] for field in STATUS},
        "share": {field: without[field] + share[field] for field in STATUS},
    }


def resident(found: dict[str, Any], pid: int) -> int:
    """Bytes of the region that a process has in its own page tables, as its smaps says."""
    total = 0
    inside = False
    for line in proc.smaps(pid):
        head, _, rest = line.partition(b" ")
        if b"-" in head and not head.endswith(b":"):
            start = int(head.partition(b"-")[0], 16)
            inside = any(each.start <= start < each.end for each in found["windows"])
        elif inside and head == b"Rss:":
            total += int(rest.split()[0]) << 10
    return total


def _kilobytes(pid: int, field: str) -> int:
    return int((proc.status(pid, field) or "0").split()[0]) << 10


def windows(clients: list[dict[str, Any]], pid: int) -> list[Window]:
    """Where a process has the region attached. ESRCH: nowhere."""
    found = [
        Window(client["base"], client["base"] + client["size"], client["offset"])
        for client in clients
        if client["pid"] == pid and client["kind"] != "unseen"
    ]
    if not found:
        raise ProcessLookupError(
            errno.ESRCH,
            f"process {pid} has not attached the region; `msharefs clients` lists who has",
        )
    return found


_TITLES = {
    "host mm": "the region's host mm",
    "now": "process {pid}, now",
    "without": "  without regions",
    "whole": "  with all of the host mm",
    "share": "  with its share of it",
}


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@click.option("--pid", type=int, help="Show it at the addresses that it has in this process.")
@click.option(
    "--status", "as_status", is_flag=True,
    help="Show what /proc/PID/status would say of the host mm, and of the process in --pid.",
)  # fmt: skip
@_show.json_option
def command(region: str, pid: int | None, as_status: bool, as_json: bool) -> None:
    """Show a region's memory in the shape of /proc/PID/smaps.

    So a kernel could show it that knew about host mms; it is a proposal. A page counts once for the
    region. Its share (Pss) is that of each process that is attached, whether it has touched the
    page or not.
    """
    found = _region.describe(region, "smaps")
    found["windows"] = windows(_region.describe(region, "clients"), pid) if pid else []
    if as_status:
        figures = status(found, pid)
        if as_json:
            document = _json.smaps_status(figures, region)
            _show.print_json(_json.document("smaps-status", document))
            return
        table = _show.table("", *STATUS, right=STATUS)
        for key, row in figures.items():
            table.add_row(_TITLES[key].format(pid=pid), *(units.size(row[f]) for f in STATUS))
        _show.show(table)
        return
    if as_json:
        _show.print_json(_json.document("smaps", _json.smaps(found, region)))
        return
    for window in found["windows"] or [Window(0, found["size_bytes"], 0)]:
        for line in lines(found, _show.printable(region), window):
            click.echo(line)
