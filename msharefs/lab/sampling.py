"""Watching the page tables of running programs: their own, and those of the regions they attach.

A region's figures are read from its objects in the state directory. So unlinked regions are seen
too, and nobody is disturbed. The server is asked only to bring the entries of adopted memory up to
date, which nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from msharefs import home, proc
from msharefs.mountpoint import FSTYPE
from msharefs.native import ffi, lib
from msharefs.server import describe
from msharefs.server.view import View

from . import own, ptmap, shared_pt
from .missed import Missed, Ours
from .moments import COUNTERS, Moment, Region, Sample, by_class
from .plan import TABLE_BYTES
from .survey.objects import SYSV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

INTERVAL_SECONDS = 0.05
# Looking takes time from the program's processors: at most this share of one.
COST_SHARE = 0.1
# Samples kept; when there are more, every other one is dropped and the rest stand for longer.
SAMPLES_MAX = 2000
# A new map is kept when the page tables have grown by this since the last one.
MAP_GROWTH = 1.2
MAPS_MAX = 4
# What is not adopted is looked for at most so often.
MISSED_SECONDS = 0.2
# A server answers in so many milliseconds, or is not asked.
_ANSWER_MS = 1000


class Sampler:
    """Looks again and again while this context lives.

    `processes` gives the processes to look at, `state` is the state directory of the mount. With
    `others` the mount is not these processes' alone: a region counts while one of them has it
    attached, with their attachments, and with its faults since the start. `adopt` are the classes
    of memory that the programs were to adopt, each from a size on. `ptshare`: MAP_SHARED_PT has
    Android's rules for them.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[int]],
        state: Path,
        interval: float = INTERVAL_SECONDS,
        *,
        others: bool = False,
        adopt: Mapping[str, int] | None = None,
        ptshare: bool = False,
    ) -> None:
        self._processes = processes
        self._ptshare = shared_pt.Counted() if ptshare else None
        """Of the moment that is reported."""
        self._missed = Missed(adopt or {})
        self._of_regions: set[Ours] = set()
        """The objects of all regions so far."""
        self._looked = -MISSED_SECONDS
        self._objects = home.store(state) / "regions"
        self._names = home.store(state) / "tree" / "root"
        self._control = state / "control"
        self._devices = {mount.device for mount in proc.mounts() if mount.fstype == FSTYPE}
        """Of what is ours, where a process maps it."""
        with contextlib.suppress(FileNotFoundError):  # there is no mount: a plain program
            self._devices.add(os.stat(self._objects).st_dev)
        self._met: dict[int, own.Process] = {}
        """The processes of the present look."""
        self._held: dict[tuple[int, int, int], tuple[Any, Any, own.Held | None]] = {}
        """Of adopted memory: process, start time and region; by what state, and what it has."""
        self._maps: dict[int, tuple[int, tuple[Any, ...]]] = {}
        """What a map of a region takes, with its weight."""
        self._whole = threading.Lock()
        """Nobody tells of it in the middle of a look."""
        self._most: Moment | None = None
        self._steady: Moment | None = None
        self._linked: dict[int, set[tuple[int, int, int]]] = {}
        """Of adopted memory: process, start time and quantum of each link that was seen."""
        self._interval = interval
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="msharefs-sampler", daemon=True)
        self._others = others
        self._seen: set[tuple[int, int]] = set()
        """The processes so far, with their start times; kept where there are others."""
        self._before: dict[int, dict[str, int]] = {}
        """The counters of the regions at the start; kept where there are others."""
        self._now: dict[int, dict[str, Any]] = {}
        """What is seen of each region in the present look."""
        self.moment: Sample | None = None
        """The sample that is reported: see `_choose`."""
        self.samples: list[Sample] = []
        self.regions: dict[int, Region] = {}
        self.error: Exception | None = None
        """The error that ended the watching too early."""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._others:
            self._bring_up_to_date()
            self._before = dict(self._counters())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def _watch(self) -> None:
        interval = self._interval
        try:
            while True:
                before = time.thread_time()
                self.look()
                cost = time.thread_time() - before
                if len(self.samples) > SAMPLES_MAX:
                    self.samples = self.samples[::2]
                    interval *= 2
                if self._stop.wait(max(interval, cost / COST_SHARE)):
                    break
            self.look()  # at those that are left
        except Exception as error:  # noqa: BLE001  # the report names it; the program goes on
            self.error = error

    def look(self) -> None:
        """Take a sample.

        Each process is looked at once, for everything; the regions come after that, so that a table
        that a process was seen to have is one of its region's. Processes run meanwhile: what they
        have gained at the end says how much of a moment it is.
        """
        with self._whole:
            self._look()

    def _look(self) -> None:
        began = self.seconds
        pids = list(self._processes())
        views = dict(self._open_views())
        try:
            devices = {view.memory_identity[0] for view in views.values() if view.adopted}
            met = [found for pid in pids if (found := own.meet(pid, devices)) is not None]
            self._met = {one.pid: one for one in met}
            if self._others:
                self._seen |= {(one.pid, one.start_time) for one in met}
            size = sum(one.vmpte_bytes for one in met)
            sample = Sample(began, len(pids), size, *[0] * 6)
            clients = {ident: self._clients(view) for ident, view in views.items()}
            held = {
                ident: [self._hold(ident, views[ident], client) for client in found]
                for ident, found in clients.items()
            }
            self._bring_up_to_date()
            self._now = {}
            attached: set[int] = set()
            for ident, view in views.items():
                if clients[ident] or not self._others:
                    attached |= self._look_at(ident, view, clients[ident], held[ident], sample)
        finally:
            for view in views.values():
                view.close()
        sample.clients = len(attached)
        counted = shared_pt.count(pids) if self._ptshare is not None else None
        if counted is not None:
            sample.shared_pt_bytes = counted.own * TABLE_BYTES
        # After their tables: those are among all that they have.
        now = {pid: own.vmpte(pid) for pid in (*self._met, *self._processes())}
        sample.vmpte_bytes = sum(now[pid] for pid in self._met)
        sample.grew_bytes = sum(now.values()) - size
        sample.took_seconds = self.seconds - began
        self.samples.append(sample)
        if sample.seconds >= self._looked + MISSED_SECONDS:
            self._looked = sample.seconds
            self._missed.look(pids, self._of_regions, self._devices)
        self._choose(Moment(sample, self._now, counted))

    def _choose(self, new: Moment) -> None:
        """The moment that is reported is that with most page tables, if it was one."""
        if self._most is None or new.sample.weight > self._most.sample.weight:
            self._most = new
        steady = self._steady
        if new.sample.steady and (steady is None or new.sample.weight > steady.sample.weight):
            self._steady = steady = new
        chosen = self._most
        if steady is not None and steady.is_nearly(chosen):
            chosen = steady
        if chosen is new or self.moment is not chosen.sample:
            self.moment, self._ptshare = chosen.sample, chosen.shared_pt
            for region in self.regions.values():
                region.at_moment(chosen.regions.get(region.ident, {}))

    def _open_views(self) -> Iterator[tuple[int, View]]:
        for path in sorted(self._objects.glob("*.mm")):
            with contextlib.suppress(OSError):  # it went since we saw its name, or is not ready yet
                view = View(f"region {path.stem}", self._objects, int(path.stem))
                view.close_files()  # there may be very many
                yield int(path.stem), view

    def _look_at(
        self,
        ident: int,
        view: View,
        clients: list[dict[str, Any]],
        held: list[own.Held | None],
        sample: Sample,
    ) -> set[int]:
        """Add a region to the sample; the processes that have it attached."""
        try:
            raw = view.stat()
            before = self._before.get(ident, {})
            mapped = sum(end - start for start, end in view.ranges())
            whole = (self._objects / f"{ident}.mm").stat().st_blocks * 512
        except OSError:
            return set()
        if ident not in self.regions:
            self.regions[ident] = self._region(ident)
        region = self.regions[ident]
        for key in COUNTERS:
            seen = getattr(raw, key) - before.get(key, 0)
            setattr(region, key, max(getattr(region, key), seen))
        region.size_bytes = raw.size
        if view.memory is not None:  # it may have been met before that was known
            region.kind, region.given_name = view.memory.kind, view.memory.name
            self._of_regions.add(Ours(*view.memory_identity, view.memory.kind == SYSV))
            region.links = self._links(ident, view.quantum, clients, held)
        there = [each.own for each in held if each is not None]
        unshared = sum(
            min(client["unshared_tables"] or 0, each.own.shareable // TABLE_BYTES)
            for client, each in zip(clients, held, strict=True)
            if each is not None
        )
        tables = sum(each.shareable for each in there)
        upper = sum(each.upper for each in there)
        sample.own_tables_bytes += tables
        sample.upper_tables_bytes += upper
        sample.unshared_tables_bytes += unshared * TABLE_BYTES
        sample.unseen += len(held) - len(there)
        sample.page_table_bytes += raw.page_table_bytes
        sample.attachments += len(clients)
        sample.mapped_bytes += mapped
        self._now[ident] = {
            "mapped_bytes": mapped,
            "clients": len(clients),
            "programs": dict(Counter(client["comm"] for client in clients).most_common()),
            "own_tables_bytes": tables,
            "upper_tables_bytes": upper,
            "page_table_bytes": raw.page_table_bytes,
            "host_mm_bytes": whole,
            "rss_bytes": raw.rss,
        }
        self._keep_map(region, view, clients, held, raw.page_table_bytes + tables)
        return {client["pid"] for client in clients}

    def _bring_up_to_date(self) -> None:
        """The entries of memory that Linux fills; without a server that answers, they stay."""
        deadline = lib.control_deadline(_ANSWER_MS)
        sock = lib.control_connect_path(os.fsencode(self._control), deadline)
        if sock >= 0:
            message = ffi.new("struct msg *", {"op": lib.MSG_LOOK})
            lib.control_call(sock, message, ffi.NULL, 0, ffi.NULL)
            os.close(sock)

    def _clients(self, view: View) -> list[dict[str, Any]]:
        """The clients of a region among the processes that were met."""
        memory = view.memory
        if memory is None:
            return self._ours(describe.clients(view))
        found = []
        for one in self._met.values():
            mappings = [
                each for each in one.mapped.get(view.memory_identity, ()) if memory.maps(each)
            ]
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # The numbers of segments are those of their IPC namespace.
                if mappings and memory.space in (0, proc.ipc_namespace(one.pid)):
                    found.append(describe.adopter(one.pid, one.start_time, mappings))
        return found

    def _hold(self, ident: int, view: View, client: dict[str, Any]) -> own.Held | None:
        """What a client has of a region in its own tables.

        Of memory that Linux fills, nothing has changed where there was no fault and no new table.
        """
        parts = ptmap.windows(client)
        if not view.adopted:
            return own.look(client["pid"], parts, view.quantum)
        who = client["pid"], client["start_time"], ident
        one = self._met[client["pid"]]
        state = one.vmpte_bytes, one.faults
        known = self._held.get(who)
        if known is None or known[:2] != (state, parts):
            known = self._held[who] = state, parts, own.look(client["pid"], parts, view.quantum)
        return known[2]

    def _links(
        self,
        ident: int,
        quantum: int,
        clients: list[dict[str, Any]],
        held: list[own.Held | None],
    ) -> int:
        """Links of adopted memory so far: quanta of which a process has had pages."""
        seen = self._linked.setdefault(ident, set())
        for client, each in zip(clients, held, strict=True):
            if each is not None:
                who = client["pid"], client["start_time"]
                seen |= {(*who, number) for number in each.quanta(quantum)}
        return len(seen)

    def _ours(self, clients: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those clients that are processes of ours."""
        if not self._others:
            return clients
        return [one for one in clients if (one["pid"], one["start_time"]) in self._seen]

    def _counters(self) -> Iterator[tuple[int, dict[str, int]]]:
        """What each region has counted so far."""
        for path in self._objects.glob("*.mm"):
            with (
                contextlib.suppress(OSError),
                View(path.stem, self._objects, int(path.stem)) as view,
            ):
                raw = view.stat()
                yield int(path.stem), {key: getattr(raw, key) for key in COUNTERS}

    def _region(self, ident: int) -> Region:
        """What a region is that is met for the first time."""
        for directory, _, files in os.walk(self._names):
            for name in files:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):  # it is gone
                    if os.lstat(path).st_ino == ident:
                        return Region(ident, given_name=os.path.relpath(path, self._names))
        return Region(ident)

    def _keep_map(
        self,
        region: Region,
        view: View,
        clients: list[dict[str, Any]],
        held: list[own.Held | None],
        weight: int,
    ) -> None:
        """Keep what a map takes, of when it has most to show: bytes of tables."""
        known = self._maps.get(region.ident)
        if (known is None and len(self._maps) >= MAPS_MAX) or (
            known is not None and weight <= known[0] * MAP_GROWTH
        ):
            return
        cells = [each.cells if each is not None else None for each in held]
        found = view.name, describe.pagetable(view), clients, describe.maps(view), cells
        self._maps[region.ident] = weight, found

    def document(self) -> dict[str, Any]:
        """All that was seen, for JSON: one moment; the samples; the regions; their classes.

        It is the moment with most page tables that was one. Only counters are those of the end.
        """
        with self._whole:
            return self._document()

    def _document(self) -> dict[str, Any]:
        most = self.moment or Sample(*[0] * 9)

        def total(key: str) -> int:
            return sum(getattr(region, key) for region in self.regions.values())

        tables, held = most.own_tables_bytes, most.page_table_bytes
        kept = held + most.unshared_tables_bytes
        for ident, (weight, found) in self._maps.items():
            self.regions[ident].map = {**ptmap.draw(*found), "weight": weight}
        regions = [{"name": one.name, **asdict(one)} for one in self.regions.values()]
        for one in regions:
            if one["map"] is not None:
                one["map"]["name"] = one["name"]
        regions.sort(key=lambda one: one["page_table_bytes"] - one["own_tables_bytes"])
        return {
            "moment_seconds": most.seconds,
            "moment_took_seconds": most.took_seconds,
            "moment_grew_bytes": most.grew_bytes,
            "moment_steady": most.steady,
            "processes": most.processes,
            "clients": most.clients,
            "attachments": most.attachments,
            "mapped_bytes": most.mapped_bytes,
            "vmpte_bytes": most.vmpte_bytes,
            "own_tables_bytes": tables,
            "upper_tables_bytes": most.upper_tables_bytes,
            "unshared_tables_bytes": most.unshared_tables_bytes,
            "page_table_bytes": held,
            "host_mm_bytes": total("host_mm_bytes"),
            "unseen_clients": most.unseen,
            "ratio": tables / kept if kept else None,
            "region_faults": total("faults"),
            "prefaulted": total("prefaulted"),
            "links": total("links"),
            "samples": [asdict(sample) for sample in self.samples],
            "regions": regions,
            "classes": by_class(regions),
            "shared_pt": self._ptshare.document() if self._ptshare is not None else None,
            "not_adopted": self._missed.found(self._of_regions),
            "incomplete": str(self.error) if self.error else None,
        }
