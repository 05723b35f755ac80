"""``msharefs clients REGION|MOUNT``."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import mountpoint, proc, summary, units

from . import _complete, _json, _patience, _region, _show, _watch

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = (
    "pid", "command", "kind", "base", "offset", "size", "prot", "links", "faults", "materialised",
    "segv",
)  # fmt: skip
REGION = ("region",)
BUDGET = ("budget", "evicted", "refaulted")
UNSHARED = ("unshared",)
ADDED = ("+links", "+faults")
NUMBERS = (
    "pid", "offset", "size", "links", "faults", "materialised", "segv", "evicted", "refaulted",
    *UNSHARED, *ADDED,
)  # fmt: skip
# Left out where there is no room for them, the first first.
SPARE = ("refaulted", "evicted", "offset", "materialised", "base", "segv", "links", "prot", "size")
SORTS = {
    "pid": "pid",
    "command": "comm",
    "region": "region",
    "faults": "faults",
    "links": "links",
    "materialised": "materialised_pages",
    "evicted": "evicted_spans",
}
NATIVE = (
    "native: mapped without the library, at Linux's own speed; the region's holes and protections "
    "are not enforced there"
)
UNSEEN = (
    "unseen: in the middle of execve(2), or with the address space locked: whether it has mapped "
    "the region cannot be seen now"
)


def row(
    client: dict[str, Any],
    *,
    budget: bool = False,
    unshared: bool = False,
    region: bool = False,
) -> list[str]:
    """One client as the cells of the table for people; less is known of a native one."""
    given_back = [_budget(client), *_counts(client, "evicted_spans", "refaulted_spans")]
    return [
        *([_show.printable(client["region"])] if region else ()),
        str(client["pid"]),
        _show.printable(client["comm"]),
        client["kind"],
        *_where(client),
        *_counts(client, "links", "faults", "materialised_pages", "segv"),
        *(given_back if budget else ()),
        *(_counts(client, "unshared_tables") if unshared else ()),
    ]


def _where(client: dict[str, Any]) -> tuple[str, str, str, str]:
    if client["kind"] == "unseen":
        return "-", "-", "-", "-"
    sizes = units.size(client["offset"]), units.size(client["size"])
    return f"{client['base']:#x}", *sizes, str(client["prot"])


def _counts(client: dict[str, Any], *names: str) -> Iterator[str]:
    return ("-" if client[name] is None else str(client[name]) for name in names)


def _budget(client: dict[str, Any]) -> str:
    """How much it keeps of its own page tables."""
    now, asked = client["budget_bytes"], client["budget_asked_bytes"]
    if not now:
        return "-" if client["kind"] in ("native", "unseen", "adopted") else "none"
    return units.size(now) if now == asked else f"{units.size(now)}, asked {units.size(asked)}"


def of_mount(directory: Path) -> Iterator[dict[str, Any]]:
    """The clients of all regions of a mount that this user may read, each with its "region"."""
    from msharefs.server import describe

    adopters: list[int] | None = None
    for each in summary.named(directory):
        if each["adopted"]:
            if adopters is None:
                adopters = mountpoint.attached_processes(directory)
            for client in describe.adopters(each["memory"], adopters):
                yield {"region": summary.title(each), **client}
        elif each["unnamed"] and each["size_bytes"]:
            found = _by_number(directory, each["inode"])
            yield from ({"region": summary.title(each), **client} for client in found)
        elif each["name"] is not None and each["size_bytes"]:
            try:
                found = _region.ask(os.fspath(directory / each["name"]), "clients")
            except (FileNotFoundError, PermissionError):
                continue  # unlinked meanwhile, or another user's
            yield from ({"region": each["name"], **client} for client in found)


def _by_number(directory: Path, inode: int) -> list[dict[str, Any]]:
    """The clients of a region that no path leads to."""
    from msharefs.client import describe_by_number

    control = Path(str(mountpoint.place(directory)["state"]), "control")
    try:
        found: list[dict[str, Any]] = describe_by_number(control, inode, "clients")
    except FileNotFoundError:
        return []  # it is gone meanwhile
    return found


def of_target(target: str | None) -> list[dict[str, Any]]:
    """The clients of a region, of a mount, or of all mounts."""
    if target is None:
        mounts = [each for each in proc.mounts() if each.fstype == mountpoint.FSTYPE]
        return [
            {**client, "region": os.fspath(mount.directory / client["region"])}
            for mount in mounts
            for client in of_mount(mount.directory)
        ]
    if os.path.isdir(target):
        _region.look(target)
        return list(of_mount(_root(Path(target))))
    found: list[dict[str, Any]] = _region.describe(target, "clients")
    return found


def _root(directory: Path) -> Path:
    """The directory, which must be the root of a mount."""
    resolved = mountpoint.resolve(directory)
    mount = mountpoint.above(resolved)
    if mount is None or mount.directory != resolved:
        raise OSError(
            errno.EINVAL,
            "is not the root of a mount: name that, or a region",
            os.fspath(directory),
        )
    return resolved


def _key(client: dict[str, Any]) -> tuple[Any, ...]:
    """The same attachment in two looks."""
    return client.get("region"), client["pid"], client["start_time"], client["base"]


def table(clients: list[dict[str, Any]], before: list[dict[str, Any]] | None) -> Any:
    """For people; `before` is the look before, of --watch."""
    budget = any(client["budget_bytes"] for client in clients)
    unshared = any(client["unshared_tables"] for client in clients)
    region = any("region" in client for client in clients)
    lines = _show.table(
        *(REGION if region else ()), *COLUMNS, *(BUDGET if budget else ()),
        *(UNSHARED if unshared else ()), *(ADDED if before is not None else ()), right=NUMBERS,
    )  # fmt: skip
    known = {_key(client): client for client in before or []}
    for client in clients:
        last = known.get(_key(client), {})
        growth = [_watch.added(client[name], last.get(name)) for name in ("links", "faults")]
        lines.add_row(
            *row(client, budget=budget, unshared=unshared, region=region),
            *(growth if before is not None else ()),
        )
    return lines


@click.command()
@click.argument(
    "target", metavar="[REGION|MOUNT]", required=False, shell_complete=_complete.regions
)
@click.option("--pid", type=click.IntRange(min=1), help="Only this process.")
@_show.sort_option(SORTS)
@_watch.option
@_watch.count_option
@_show.json_option
def command(
    target: str | None,
    pid: int | None,
    sort: str,
    watch: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Show the processes that are attached to a region.

    Of a mount: to any of its regions; with --pid alone, those of all mounts.

    KIND is how: attached by the library's calls, preload by mmap(2) under `msharefs run`, adopted:
    shared memory of its own that became the region, native by mmap(2) without any library; unseen
    if Linux does not let its mappings be seen now, so that it may have none.

    UNSHARED, where there are any: page tables that a process has for itself again, since it has
    changed its window by ordinary calls (-o window=private).
    """
    if target is None and pid is None:
        raise click.UsageError("name a region or a mount, or a process with --pid")
    if target is not None:
        _patience.watch(Path(target))

    def look() -> list[dict[str, Any]]:
        found = [client for client in of_target(target) if pid in (None, client["pid"])]
        return _show.sorted_by(found, SORTS[sort])

    for clients, before in _watch.looks(look, watch, count):
        if as_json:
            document = _json.document(
                "clients",
                {"target": target, "clients": [_json.client(client) for client in clients]},
            )
            _show.print_look(document, watched=watch is not None)
            continue
        if before is not None:
            click.echo()
        if not clients:
            click.echo("no process is attached")
            continue
        _show.show(table(clients, before), SPARE)
        if any(client["kind"] == "native" for client in clients):
            click.echo(NATIVE)
        if any(client["kind"] == "unseen" for client in clients):
            click.echo(UNSEEN)
