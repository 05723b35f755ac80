"""What ``top`` and ``metrics`` show: regions of mounts, and their clients, at one moment."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msharefs import mountpoint, proc, summary

from . import clients

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# A server that does not answer in this time is left out of a look.
ANSWER_SECONDS = 1.0
COUNTERS = ("faults", "links", "unmaps", "evicted_spans")
"""The counters whose growth is shown."""


@dataclass
class Look:
    """One look. `seconds` is of the clock that never goes back."""

    seconds: float
    regions: list[dict[str, Any]]
    clients: list[dict[str, Any]]
    silent: list[str]
    """Mounts whose servers do not answer."""


def mounts(directory: Path | None) -> list[Path]:
    """The mount on a directory, or all of them."""
    if directory is not None:
        resolved = mountpoint.resolve(directory)
        mount = mountpoint.covering(resolved)
        if mount is None or mount.fstype != mountpoint.FSTYPE:
            raise OSError(
                errno.EINVAL,
                "no msharefs is mounted here: name a mount, or nothing",
                os.fspath(directory),
            )
        return [resolved]
    return [each.directory for each in proc.mounts() if each.fstype == mountpoint.FSTYPE]


def look(directories: Iterable[Path], *, with_clients: bool = True) -> Look:
    """Ask the servers of all these mounts."""
    found = Look(time.monotonic(), [], [], [])
    for directory in directories:
        where = os.fspath(directory)
        if mountpoint.probe(directory, ANSWER_SECONDS) != "alive":
            found.silent.append(where)
            continue
        with contextlib.suppress(OSError):  # it ends meanwhile
            found.regions += ({"mount": where, **each} for each in summary.named(directory))
            if with_clients:
                found.clients += ({"mount": where, **each} for each in clients.of_mount(directory))
    return found


def title(region: dict[str, Any]) -> str:
    """What a region is called."""
    if region["name"] is not None:
        return str(region["name"])
    what = "adopted memory" if region["adopted"] else "unlinked" if region["unnamed"] else "region"
    return f"({what} {region['inode']})"


def _key(each: dict[str, Any]) -> tuple[Any, ...]:
    """The same region or client in two looks."""
    if "inode" in each:
        return each["mount"], each["inode"]
    return each["mount"], each["region"], each["pid"], each["start_time"], each["base"]


def rates(
    now: list[dict[str, Any]], before: list[dict[str, Any]], seconds: float
) -> list[dict[str, float | None]]:
    """For each region or client what its counters have grown by in a second.

    None: it was not there before, or nobody counts.
    """
    known = {_key(each): each.get("counters", each) for each in before}
    found = []
    for each in now:
        counters, last = each.get("counters", each), known.get(_key(each))
        found.append(
            {
                name: None
                if last is None or seconds <= 0 or counters.get(name) is None
                else max(0, counters[name] - (last.get(name) or 0)) / seconds
                for name in COUNTERS
            }
        )
    return found


def vmpte(pid: int) -> int | None:
    """Bytes of a process's own page tables; None if it is gone."""
    try:
        text = proc.status(pid, "VmPTE")
    except OSError:
        return None
    return int(text.removesuffix(" kB")) << 10 if text else None


def rows_of_regions(now: Look, before: Look | None) -> list[dict[str, Any]]:
    """The regions with their rates, for a table."""
    passed = now.seconds - before.seconds if before else 0.0
    grown = rates(now.regions, before.regions if before else [], passed)
    return [
        {
            "mount": each["mount"],
            "name": title(each),
            "size_bytes": each["size_bytes"],
            "rss_bytes": each["rss_bytes"],
            "page_table_bytes": each["page_table_bytes"],
            "clients": each["clients"],
            "budget_bytes": each["budget_bytes"],
            **_per_second(rate),
        }
        for each, rate in zip(now.regions, grown, strict=True)
    ]


def rows_of_clients(now: Look, before: Look | None) -> list[dict[str, Any]]:
    """The clients with their rates, for a table."""
    passed = now.seconds - before.seconds if before else 0.0
    grown = rates(now.clients, before.clients if before else [], passed)
    return [
        {
            "pid": each["pid"],
            "comm": each["comm"],
            "mount": each["mount"],
            "region": each["region"],
            "client_kind": each["kind"],
            "own_tables_bytes": vmpte(each["pid"]),
            "budget_bytes": each["budget_bytes"],
            **{key: value for key, value in _per_second(rate).items() if key != _SHOOTDOWNS},
        }
        for each, rate in zip(now.clients, grown, strict=True)
    ]


_SHOOTDOWNS = "shootdowns_per_second"


def _per_second(rate: dict[str, float | None]) -> dict[str, float | None]:
    return {
        "faults_per_second": rate["faults"],
        "links_per_second": rate["links"],
        _SHOOTDOWNS: rate["unmaps"],
        "evictions_per_second": rate["evicted_spans"],
    }
