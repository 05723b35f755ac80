"""What all JSON of the command has in common: docs/schema has a schema for each kind.

A document says what it is (`kind`) and which edition of that (`version`, which changes if a name
goes or means something else; new names may come at any time). Whatever has a unit has it in its
name: `_bytes`, `_seconds`, `_ticks` (of the clock, after boot); an address has none.
"""

from __future__ import annotations

from typing import Any

VERSION = 1

_UNITS = {"size": "size_bytes", "offset": "offset_bytes", "start_time": "start_time_ticks"}
_OFFSETS = {"start": "start_bytes", "end": "end_bytes"}


def document(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """A document of ``msharefs KIND``."""
    return {"kind": f"msharefs {kind}", "version": VERSION, **found}


def region(found: dict[str, Any]) -> dict[str, Any]:
    """A region's stat."""
    return _renamed(found, _UNITS)


def client(found: dict[str, Any]) -> dict[str, Any]:
    """A client. Of adopted memory it may have several parts mapped."""
    renamed = _renamed(found, _UNITS)
    if "parts" in renamed:
        renamed["parts"] = [
            {"base": base, "size_bytes": size, "offset_bytes": offset}
            for base, size, offset in renamed["parts"]
        ]
    return renamed


def mapping(found: dict[str, Any]) -> dict[str, Any]:
    """A mapping of a region; all three are offsets."""
    return _renamed(found, _UNITS | _OFFSETS)


def smaps(found: dict[str, Any], region: str) -> dict[str, Any]:
    """A region's smaps: all that it counts of a mapping are bytes."""
    return {
        **found,
        "region": region,
        "windows": [
            {"start": each.start, "end": each.end, "offset_bytes": each.offset}
            for each in found["windows"]
        ],
        "mappings": [
            {f"{key}_bytes" if isinstance(each, int) else key: each for key, each in one.items()}
            for one in found["mappings"]
        ],
    }


def smaps_status(figures: dict[str, dict[str, int]], region: str) -> dict[str, Any]:
    """What the status of processes would say, by each way to count."""
    return {
        "region": region,
        "counted": {
            way.replace(" ", "_"): {_STATUS[field]: count for field, count in row.items()}
            for way, row in figures.items()
        },
    }


_STATUS = {"RssShmem": "rss_shmem_bytes", "VmPTE": "vmpte_bytes", "VmLck": "locked_bytes"}


def _renamed(found: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {
        names.get(key, key): _renamed(each, names) if isinstance(each, dict) else each
        for key, each in found.items()
    }
