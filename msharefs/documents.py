"""What `Region.stat`, `maps` and `clients` return, for type checkers. Sizes are bytes.

The names are those of the server; `--json` of the command line has units in its names
(docs/json.md).
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Owner(TypedDict):
    """Who owns a region, and what the owner's memory cgroup would be charged in a kernel."""

    kind: str
    pid: int
    start_time: int
    cgroup: str
    charged_data_bytes: int
    charged_table_bytes: int


class Budget(TypedDict):
    """What each client may keep of its own page tables (0: any number), and who kept more."""

    bytes: int
    clients_grown: int


class Charge(TypedDict):
    """Whose memory cgroup pays for pages (-o charge=): `to` is "toucher" or "owner"."""

    to: str
    left_bytes: int
    """What the owner was to pay for, and did not."""
    why: str


class Stat(TypedDict):
    """A region's figures."""

    name: str
    size_bytes: int
    quantum_bytes: int
    vmas: int
    rss_bytes: int
    page_table_bytes: int
    table_frames: dict[str, int]
    clients: int
    owner: Owner
    charge: Charge
    counters: dict[str, int]
    vmstat: dict[str, int]
    budget: Budget
    shootdowns: NotRequired[dict[str, dict[str, int]]]
    """For each kind of change; only of a region that has a size."""


class VMA(TypedDict):
    """A VMA of a region; `start` and `end` are region offsets."""

    start: int
    end: int
    prot: str
    offset: int
    object: str
    """ "anon", or the path of a file."""
    flags: list[str]


class Client(TypedDict):
    """An attachment; what nobody counts of a native one is None."""

    pid: int
    start_time: int
    comm: str
    kind: str
    base: int
    size: int
    offset: int
    prot: str
    links: int | None
    faults: int | None
    materialised_pages: int | None
    segv: int | None
    budget_bytes: int | None
    budget_asked_bytes: int | None
    budget_grown: int | None
    evicted_spans: int | None
    refaulted_spans: int | None
    unshared_tables: int | None
