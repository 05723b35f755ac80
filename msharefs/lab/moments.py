"""What is seen of a program's page tables in one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msharefs import units

from .survey.objects import ANON, CLASSES, known_as

if TYPE_CHECKING:
    from .shared_pt import Counted

# The class of regions that are none of a survey's classes.
ATTACHED = "attached"


# Of all page tables, what may come or go in a look at one moment.
STEADY = 0.02
# A steady moment is told in place of one with more page tables, down to this part of them.
_NEARLY = 0.9


@dataclass
class Sample:
    """One look; in bytes."""

    seconds: float
    """Seconds since the start."""
    processes: int
    vmpte_bytes: int
    """All their page tables."""
    own_tables_bytes: int
    """Of these, the ones for the regions: sharing would take them away."""
    upper_tables_bytes: int
    """Of these, the ones for the regions above the shared ones: the quantum is below 512 GiB."""
    page_table_bytes: int
    """Bytes of the host mms' tables."""
    clients: int
    """Processes that have a region attached."""
    attachments: int
    mapped_bytes: int
    """Memory mapped in regions, each byte counted once."""
    unseen: int = 0
    """Clients whose own tables for the regions cannot be seen, and are not counted."""
    unshared_tables_bytes: int = 0
    """Of the processes' own tables, those that sharing would leave them: they have changed the
    mapping there for themselves alone."""
    shared_pt_bytes: int = 0
    """Of VmPTE, the tables for mappings of MAP_SHARED_PT by Android's rules."""
    took_seconds: float = 0.0
    """How long the look took: its figures are that much apart."""
    grew_bytes: int = 0
    """What all their page tables have gained meanwhile, those of new processes with them."""

    @property
    def steady(self) -> bool:
        """Whether its figures are those of one moment."""
        return abs(self.grew_bytes) <= STEADY * self.vmpte_bytes

    @property
    def weight(self) -> tuple[int, int]:
        """How much there is to tell of this moment: its page tables."""
        of_regions = self.own_tables_bytes + self.page_table_bytes
        return of_regions + self.shared_pt_bytes, self.vmpte_bytes


@dataclass
class Moment:
    """A look with all that it tells."""

    sample: Sample
    regions: dict[int, dict[str, Any]]
    """What was seen of each region, by number."""
    shared_pt: Counted | None

    def is_nearly(self, other: Moment) -> bool:
        """Whether it has hardly less to tell than the other."""
        return all(
            mine >= _NEARLY * its
            for mine, its in zip(self.sample.weight, other.sample.weight, strict=True)
        )


COUNTERS = ("faults", "prefaulted", "links", "segv")
"""Of a region: what struct mshare_stat and `Region` have by these names."""


@dataclass
class Region:
    """A region: the counters as they were last, the rest as in the moment that is reported."""

    ident: int
    kind: str = ATTACHED
    """The class of its memory."""
    given_name: str = ""
    """The name it has on the mount, or that of the memory; empty: none."""
    size_bytes: int = 0
    mapped_bytes: int = 0
    clients: int = 0
    programs: dict[str, int] = field(default_factory=dict)
    """The names of its clients, each with their number, most first."""
    own_tables_bytes: int = 0
    upper_tables_bytes: int = 0
    page_table_bytes: int = 0
    host_mm_bytes: int = 0
    rss_bytes: int = 0
    faults: int = 0
    prefaulted: int = 0
    links: int = 0
    segv: int = 0
    map: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What people call it."""
        program = next(iter(self.programs), "")
        known = known_as(program, self.kind, self.mapped_bytes)
        if known:
            return f"{known}: {program}"
        what = self.given_name
        if self.kind == ANON:
            what = f"shared anonymous memory{': ' * bool(program)}{program}"
        return f"{what or f'region {self.ident}'}, {units.size(self.mapped_bytes)}"

    def at_moment(self, seen: dict[str, Any]) -> None:
        """Has the figures of a moment, in which it was perhaps not there."""
        for key in _OF_A_MOMENT:
            setattr(self, key, seen.get(key, {} if key == "programs" else 0))


_OF_A_MOMENT = (
    "mapped_bytes", "clients", "programs", "own_tables_bytes", "upper_tables_bytes",
    "page_table_bytes", "host_mm_bytes", "rss_bytes",
)  # fmt: skip


def by_class(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of regions, by the classes of a survey."""
    found = []
    for kind, what in {**CLASSES, ATTACHED: "regions that the program attached itself"}.items():
        own = [one for one in regions if one["kind"] == kind]
        sums = {
            key: sum(one[key] for one in own)
            for key in ("mapped_bytes", "own_tables_bytes", "page_table_bytes")
        }
        if own:
            found.append({"class": kind, "what": what, "regions": len(own), **sums})
    return found
