"""Shared memory of a program that did not become a region, found in what its processes map."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from msharefs import proc, units

from . import refused
from .survey.objects import ANON, HUGETLB, SHM, Object, Objects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

LEAST = 2 << 20
"""Bytes: below that there is not one table to share."""
_LIBRARY = "/libmsharefs-preload.so"
_FILTER = "2"  # SECCOMP_MODE_FILTER, in /proc/PID/status
_ZERO = "/dev/zero (deleted)"
# What is adopted is Linux's own memory first, or not known to the server yet. That takes no longer
# than a look, or two.
_LOOKS = {ANON: 3}
_LOOKS_OF_OTHERS = 2

NO_LIBRARY = "without our library: a static program, or one that took it out of LD_PRELOAD"
FILTERED = "the program has a seccomp filter"
HUGE = "huge pages, whose page tables Linux shares itself"
PAST_US = "mapped past our library: by a raw system call, or before it was there"


class Ours(NamedTuple):
    """An object of a region, as /proc/PID/maps tells it from others."""

    device: int
    inode: int
    segment: bool
    """It is of System V: the inode number is its shmid."""


class Missed:
    """What was not adopted, of programs that were to adopt these classes from these sizes on."""

    def __init__(self, classes: Mapping[str, int]) -> None:
        self._classes = classes
        self._objects = Objects()
        self._why: dict[int, str] = {}
        """By the number of an object: what is so in a process that maps it."""
        self._looks: Counter[int] = Counter()

    def look(
        self, pids: Iterable[int], ours: Collection[Ours], devices: Collection[int] = ()
    ) -> None:
        """Look at what these processes map. What is on one of `devices` is ours, too."""
        seen: set[int] = set()
        for pid in pids:
            try:
                seen |= self._look_at(pid, ours, devices)
            except (ProcessLookupError, PermissionError):
                continue
        self._looks.update(seen)

    def _look_at(self, pid: int, ours: Collection[Ours], devices: Collection[int]) -> set[int]:
        """The numbers of the objects that are not ours."""
        shared = [
            each
            for each in proc.maps(pid, shared=True)
            if each.device not in devices
            and Ours(each.device, each.inode, each.path.startswith("/SYSV")) not in ours
            and (each.path == _ZERO or not each.path.startswith(("/dev/", "anon_inode:")))
        ]
        if not shared:
            return set()
        why = ""
        if proc.mapped(pid, _LIBRARY) is None:
            why = NO_LIBRARY
        elif proc.status(pid, "Seccomp") == _FILTER:
            why = FILTERED
        refusals = [] if why else refused.refusals(pid)
        program, space = proc.comm(pid), proc.ipc_namespace(pid)
        numbers = set()
        for each in shared:
            number = self._objects.number(pid, space, program, each)
            if number >= 0:
                numbers.add(number)
                reason = why or refused.why(refusals, each.start)
                self._why[number] = reason or self._why.get(number, "")
        return numbers

    def found(self, ours: Collection[Ours]) -> list[dict[str, Any]]:
        """All that was large enough, largest first; `ours` has become so since."""
        told = []
        for number, what in enumerate(self._objects.all):
            name, key = _class(what), what.key
            known = Ours(key.device, key.inode, what.path.startswith("/SYSV")) in ours
            looks = self._looks[number] < _LOOKS.get(what.kind, _LOOKS_OF_OTHERS)
            if known or looks or what.end < self._classes.get(name, LEAST):
                continue
            told.append(
                {
                    "name": what.name,
                    "class": name,
                    "bytes": what.end,
                    "programs": [program for program, _ in what.programs.most_common()],
                    "why": self._reason(name, number),
                }
            )
        return sorted(told, key=lambda one: -int(one["bytes"]))

    def _reason(self, name: str, number: int) -> str:
        if name == HUGETLB:
            return HUGE
        if name not in self._classes:
            return f"not asked for (--adopt {name})"
        return self._why[number] or PAST_US


def _class(what: Object) -> str:
    """The class by which it would be adopted."""
    return "memfd" if what.kind == SHM and what.path.startswith("/memfd:") else what.kind


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    for one in found["not_adopted"]:
        of = f" of {one['programs'][0]}" if one["programs"] else ""
        size = units.size(one["bytes"])
        name = one["name"] if size in one["name"] else f"{size} {one['name']}"
        yield f"not adopted: {name}{of}: {one['why']}"
