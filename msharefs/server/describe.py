"""The contents of a host mm, as plain dicts: the JSON of the look verbs.

Offsets and sizes are region offsets and bytes. Figures are read from the shared memory and its
files, never computed from a formula; those of running clients change meanwhile.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from msharefs import looking, proc, processes
from msharefs.native import LEVELS, check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .owners import Owner
    from .view import View

PAGE = 4096
_PIECE = 500  # items of a list
_PRESENT_BYTES = 1 << 30  # of a mapping, looked at in one go
_LEAVES = _PRESENT_BYTES // PAGE  # at most, in one go


def as_json(document: Any) -> bytes:
    """The document for programs. A thread that makes a long one lets others run meanwhile."""
    return b"".join(_pieces(document))


def _pieces(value: Any) -> Iterator[bytes]:
    """Pieces of JSON: json.dumps() of something long would keep all other threads waiting."""
    if isinstance(value, dict):
        for at, (key, each) in enumerate(value.items()):
            yield b"%c%s: " % (b"{,"[at > 0], json.dumps(key).encode())
            yield from _pieces(each)
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and len(value) > _PIECE:
        for at in range(0, len(value), _PIECE):
            yield b"," if at else b"["
            yield json.dumps(value[at : at + _PIECE])[1:-1].encode()
        yield b"]"
    else:
        yield json.dumps(value).encode()


def stat(raw: Any, owner: Owner) -> dict[str, Any]:
    """`struct mshare_stat` and the owner as a dict.

    It also says what the owner's memory cgroup would be charged in the kernel: data and tables.
    """
    return {
        "size_bytes": raw.size,
        "quantum_bytes": raw.quantum,
        "vmas": raw.vmas,
        "rss_bytes": raw.rss,
        "page_table_bytes": raw.page_table_bytes,
        "table_frames": {
            name: raw.table_frames[level] for level, name in reversed(list(enumerate(LEVELS)))
        },
        "clients": raw.clients,
        "owner": {
            "kind": owner.kind,
            "pid": owner.pid,
            "start_time": owner.start_time,
            "cgroup": owner.cgroup,
            "charged_data_bytes": raw.rss,
            "charged_table_bytes": raw.page_table_bytes,
        },
        "counters": {
            "faults": raw.faults,
            "links": raw.links,
            "materialised_pages": raw.materialised_pages,
            "unmaps": raw.unmaps,
            "segv": raw.segv,
            "prefaulted": raw.prefaulted,
            "evicted_spans": raw.evicted_spans,
            "refaulted_spans": raw.refaulted_spans,
        },
        "vmstat": {
            "pgfault": raw.faults,
            "nr_page_table_pages": sum(raw.table_frames),
            "nr_shmem": raw.rss // PAGE,
        },
        "budget": {"bytes": raw.budget, "clients_grown": raw.budgets_grown},
    }


def maps(view: View) -> list[dict[str, Any]]:
    """The VMAs, in order; `object` is "anon" or the path of a file."""
    return [
        {
            "start": vma.start,
            "end": vma.end,
            "prot": _prot(vma.flags),
            "offset": vma.offset,
            "object": view.object_path(vma.object) if vma.object else "anon",
            "flags": _flags(view, vma),
        }
        for vma in view.vmas()
    ]


_FLAGS = {
    lib.VMA_SEALED: "sealed",
    lib.VMA_LOCKED: "locked",
    lib.VMA_GUARD: "guard",
    lib.VMA_RANDOM: "random",
    lib.VMA_SEQUENTIAL: "sequential",
    lib.VMA_HUGEPAGE: "hugepage",
    lib.VMA_NOHUGEPAGE: "nohugepage",
    lib.VMA_HUGE: "hugetlb",
}
_KEPT = sum(_FLAGS) | lib.VMA_POLICY


def _flags(view: View, vma: Any) -> list[str]:
    """What verbs have made of a mapping, in words; a memory policy as in numa_maps."""
    if not vma.flags & _KEPT:
        return []
    found = [word for flag, word in _FLAGS.items() if vma.flags & flag]
    if vma.flags & lib.VMA_POLICY:
        found.append(str(view.policy(vma)))
    return found


def _prot(flags: int) -> str:
    bits = ((lib.VMA_READ, "r"), (lib.VMA_WRITE, "w"), (lib.VMA_EXEC, "x"))
    return "".join(letter if flags & bit else "-" for bit, letter in bits) + "s"


def pagetable(view: View) -> dict[str, Any]:
    """The tree of tables, level by level from the top; spans are host addresses."""
    count = check(lib.mm_tables(view.mm, ffi.NULL, 0), f"{view.name}: walking its page tables")
    tables = ffi.new("struct mm_table[]", count)
    # Clients may have added tables since: the next look shows those.
    lib.mm_tables(view.mm, tables, count)
    levels: dict[str, list[dict[str, Any]]] = {name: [] for name in reversed(LEVELS)}
    for table in tables:
        if table.end:
            levels[LEVELS[table.level]].append(
                {
                    "frame": table.frame,
                    "start": table.start,
                    "end": table.end,
                    "present": table.present,
                    "huge": table.huge,
                    "accessed": table.accessed,
                    "dirty": table.dirty,
                }
            )
    return {
        "levels": [
            {"level": level, "tables": sorted(found, key=lambda table: table["start"])}
            for level, found in levels.items()
        ],
        "huge_pages": _huge_pages(view),
        "mappings": [
            {
                "start": lib.HOST_BASE + vma.start,
                "end": lib.HOST_BASE + vma.end,
                "flags": _flags(view, vma),
            }
            for vma in view.vmas()
            if vma.flags & _KEPT
        ],
    }


def entries(view: View) -> dict[str, Any]:
    """Which pages have an entry, mapping by mapping: a byte for each, compressed, in base64.

    And what makes entries beside faults: how many pages a sequential first touch fills at most, and
    whether Linux fills memory by itself at present.
    """
    header = view.mm.header
    return {
        "fault_around": int(header.fault_around),
        "linux_fills": bool(lib.entries_by_linux(view.mm)),
        "ranges": [
            {"start": vma.start, "end": vma.end, "present": _present(view, vma.start, vma.end)}
            for vma in view.vmas()
        ],
    }


def _present(view: View, start: int, end: int) -> str:
    packer = zlib.compressobj(level=1)
    packed = []
    for at in range(start, end, _PRESENT_BYTES):
        until = min(end, at + _PRESENT_BYTES)
        vec = ffi.new("uint8_t[]", (until - at) // PAGE)
        lib.mm_present(view.mm, at, until, vec)
        packed.append(packer.compress(ffi.buffer(vec)))
    return base64.b64encode(b"".join((*packed, packer.flush()))).decode()


def leaves(view: View) -> dict[str, Any]:
    """The mappings, and the leaf entries of each: struct mm_leaf, compressed, in base64."""
    room = ffi.new("struct mm_leaf[]", _LEAVES)
    return {
        "ranges": [
            {**mapping, "leaves": _leaves(view, mapping["start"], mapping["end"], room)}
            for mapping in maps(view)
        ]
    }


def _leaves(view: View, start: int, end: int, room: Any) -> str:
    packer = zlib.compressobj(level=1)
    packed = []
    for at in range(start, end, _PRESENT_BYTES):
        until = min(end, at + _PRESENT_BYTES)
        count = check(
            lib.mm_leaves(view.mm, at, until, room, _LEAVES),
            f"{view.name}: walking its page tables",
        )
        packed.append(packer.compress(ffi.buffer(room, count * ffi.sizeof("struct mm_leaf"))))
    return base64.b64encode(b"".join((*packed, packer.flush()))).decode()


def _huge_pages(view: View) -> list[int]:
    """Host addresses of the 2 MiB pages that have an entry."""
    count = check(lib.mm_huge_pages(view.mm, ffi.NULL, 0), f"{view.name}: walking its page tables")
    pages = ffi.new("uint64_t[]", count)
    return list(pages[0 : min(count, lib.mm_huge_pages(view.mm, pages, count))])


# How a client came to be attached; `mappings` adds "native".
_KINDS = {
    lib.ATTACH_LIBRARY: "attached",
    lib.ATTACH_PRELOAD: "preload",
    lib.ATTACH_ADOPTED: "adopted",
}


UNCOUNTED = (
    "links", "faults", "materialised_pages", "segv",
    "budget_bytes", "budget_asked_bytes", "budget_grown", "evicted_spans", "refaulted_spans",
    "unshared_tables",
)  # fmt: skip
"""What is not known of a process that maps memory without us."""


def clients(view: View, native: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The attachments that we serve, by slot, and those `native` ones that `mappings` has found."""
    ours = [
        {
            "pid": client.pid,
            "start_time": client.start_time,
            "comm": processes.command(client.pid),
            "kind": _KINDS.get(client.way, "attached"),
            "base": client.base,
            "size": client.size,
            "offset": client.offset,
            "prot": _prot(client.prot),
            "links": client.links,
            "faults": client.faults,
            "materialised_pages": client.materialised,
            "segv": client.segv,
            "budget_bytes": client.budget,
            "budget_asked_bytes": client.budget_asked,
            "budget_grown": client.budget_grown,
            "evicted_spans": client.evicted,
            "refaulted_spans": client.refaulted,
            "unshared_tables": client.unshared,
        }
        for client in view.attachments()
    ]
    pids = {client["pid"] for client in ours}
    return ours + [each for each in native if each["kind"] != "unseen" or each["pid"] not in pids]


def adopted(view: View, pids: Iterable[int]) -> list[dict[str, Any]]:
    """Those of these processes that map adopted memory, like `clients`; it has no others.

    `parts` are the mappings of each: address, bytes, offset.
    """
    found: list[dict[str, Any]] = []
    memory = view.memory
    if memory is None:
        return found
    device, inode = view.memory_identity
    for pid in pids:
        try:
            mappings = [each for each in proc.maps(pid, {device}, inode) if memory.maps(each)]
            if memory.space and mappings and proc.ipc_namespace(pid) != memory.space:
                continue  # the numbers of its segments are others'
            started = processes.start_time(pid)
        except (ProcessLookupError, PermissionError):
            continue
        if mappings:
            found.append(adopter(pid, started, mappings))
    return found


def adopters(memory: tuple[int, int], pids: Iterable[int]) -> list[dict[str, Any]]:
    """As `adopted`, of memory that has this st_dev and st_ino: where there is no view of it.

    A process that does not let us see what it maps is there, of kind "unseen".
    """
    device, inode = memory

    def at(pid: int) -> dict[str, Any] | None:
        try:
            mappings = list(proc.maps(pid, {device}, inode))
            return adopter(pid, processes.start_time(pid), mappings) if mappings else None
        except (ProcessLookupError, PermissionError):
            return None

    found = looking.look(pids, at)
    rows = [row for row in found.seen.values() if row is not None]
    return rows + [unseen(pid) for pid in sorted(found.unknown)]


def unseen(pid: int) -> dict[str, Any]:
    """A process of which it cannot be seen whether it is a client, like those of `clients`."""
    return {
        "pid": pid,
        "start_time": 0,
        "comm": processes.command(pid),
        "kind": "unseen",
        "base": 0,
        "size": 0,
        "offset": 0,
        "prot": "",
        **dict.fromkeys(UNCOUNTED),
    }


def adopter(pid: int, started: int, mappings: list[proc.Mapping]) -> dict[str, Any]:
    """A process that maps adopted memory, like those of `clients`."""
    first = mappings[0]
    return {
        "pid": pid,
        "start_time": started,
        "comm": processes.command(pid),
        "kind": "adopted",
        "base": first.start,
        "size": first.end - first.start,
        "offset": first.offset,
        "prot": first.prot,
        "parts": [(one.start, one.end - one.start, one.offset) for one in mappings],
        **dict.fromkeys(UNCOUNTED),
    }


def audit(view: View) -> dict[str, Any]:
    """The invariants of the whole region, checked (struct mm_audit)."""
    found = view.audit()
    return {
        "tables": {name: found.tables[level] for level, name in reversed(list(enumerate(LEVELS)))},
        **{
            field: getattr(found, field)
            for field in ("leaves", "frame_bytes", "held", "lost", "stray", "bad", "vmas")
        },
    }
