"""A survey in words: the answer, and what must be said beside the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msharefs import units

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMED = 3  # objects in the answer


def answer(found: dict[str, Any]) -> str:
    """The first sentence."""
    if not found["processes"]:
        return "no process that could be looked at"
    tables = found["vmpte_bytes"] - found["linked_bytes"]
    saved = found["saved_bytes"]
    start = f"{_processes(found['processes'])}: page tables {units.size(tables)};"
    if not found["looked_at"]:
        why = "none of them could be looked at"
        return f"{start} what sharing would take away is not known: {why}"
    partly = bool(found["unseen"] or found["hidden"]["processes"])
    start += " sharing would take away"
    if saved <= 0 and partly:
        looked = _processes(found["looked_at"])
        return f"{start} nothing of what could be looked at, {looked}"
    if saved <= 0:
        return f"{start} nothing: no table of theirs is the same in two of them."
    start += " at least" if partly else ""
    share = f"{saved / tables:.1%}".replace("%", " %")
    named = [one for one in found["objects"] if one["saved_bytes"] >= saved / 100][:_NAMED]
    parts = [f"{units.size(one['saved_bytes'])} {whose(one)}" for one in named]
    if len(named) < sum(one["saved_bytes"] > 0 for one in found["objects"]):
        parts.append("...")
    return f"{start} {units.size(saved)} ({share}){error(found)}: {', '.join(parts)}"


def _processes(count: int) -> str:
    return f"{count:,} process{'' if count == 1 else 'es'}"


def error(found: dict[str, Any]) -> str:
    """The error bar of a sample; empty if everything was looked at."""
    bar = found.get("error_bytes")
    return f" +- {units.size(bar)}" if bar else ""


def whose(one: dict[str, Any]) -> str:
    """An object with the programs that have it."""
    if one["name"].startswith("private memory of "):
        return f"private memory of {one['processes']:,} {next(iter(one['programs']))}"
    names = list(one["programs"])
    program = names[0] if len(names) == 1 else f"{names[0]} and others" if names else "processes"
    return f"{one['name']} of {one['processes']:,} {program}"


def remarks(found: dict[str, Any]) -> Iterator[str]:
    """What could not be seen, and what the figures leave out."""
    yield from _sample(found)
    for one in found["unseen"]:
        yield (
            f"not looked at: {one['processes']:,} processes of {one['user']} (EACCES), page tables "
            f"{units.size(one['vmpte_bytes'])}: run this as root"
        )
    hidden = found["hidden"]
    if hidden["processes"]:
        yield (
            f"not counted: {hidden['processes']:,} processes that /proc hides (hidepid): run this "
            "as root"
        )
    if hidden["more"]:
        yield "/proc does not show other users' processes (hidepid): run this as root to count them"
    if found["ended"]:
        yield f"{found['ended']:,} processes ended meanwhile and are not counted"
    if not found["sees"]["frames"]:
        yield (
            "no page frame numbers (CAP_SYS_ADMIN): private pages that Linux says are in several "
            "processes are taken to be the same in all processes of a family"
        )
    if not found["sees"]["scans"]:
        yield "no PAGEMAP_SCAN (Linux 6.7): huge pages of files count as small ones"
    if found["linked_bytes"]:
        yield (
            f"Linux shares {units.size(found['linked_bytes'])} of hugetlbfs' PMD tables already: "
            "VmPTE counts them in each process"
        )
    empty = found["looked_vmpte_bytes"] - found["counted_bytes"]
    if empty > 0:
        yield f"{units.size(empty)} of the tables have no page in them now and are left out"
    if found["unwritten_bytes"] > 0:
        yield (
            f"{units.size(found['unwritten_bytes'])} more could be shared if private memory had "
            "not been written since fork"
        )


def _sample(found: dict[str, Any]) -> Iterator[str]:
    """What was drawn, and how sure that is."""
    parts = []
    if found["sampled"]["processes"]:
        parts.append(f"{found['looked_at']:,} of {found['processes']:,} processes")
    if found["sampled"]["spans"]:
        parts.append("some spans of 2 MiB of large mappings")
    if parts:
        yield (
            f"a sample was looked at ({' and '.join(parts)}): what would go is within "
            f"{units.size(found['error_bytes'])} of the figure 19 times in 20; --exact looks at "
            "everything; VmPTE is exact anyway"
        )
