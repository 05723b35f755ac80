"""Why an answer of ours is not the series': every reason, written once.

A row that differs names one of them (`why`). CONFORMANCE.md lists the rows by kind, with the
reasons; README.md has the kinds, with the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The origin of a reason, in the order of the reports."""

    PAGE_TABLES = (
        "Each process has real page tables of its own, a cache of the shared ones. Linux counts "
        "its pages, its tables and its faults; `msharefs stat` and `clients` count as the series "
        "would."
    )
    SERVER = (
        "A FUSE mount, with a server in user space: its type is `fuse.msharefs`, FUSE answers a "
        "few calls itself, and the server learns of a process's end a little later."
    )
    ATTACHMENT = (
        "What is attached is a memory object in the state directory, mapped by a library and "
        "watched by a userfaultfd."
    )
    DEFECT = (
        "Defects of v3 that are never copied: missing TLB flushes, corrupted tables, endless core "
        "dumps, memory that is kept."
    )
    FILLED = "The kernel's own access to an absent page fills it: better for a program than EFAULT."
    ACCOUNTING = "Linux accounts for memory by who touches it, not by who owns the region."
    CHOICE = (
        "By choice: the safe behaviour is the default, and a region lives until it is unlinked and "
        "unused (`-o owner=file`). `-o quirks=v3` is v3 to the letter."
    )


@dataclass(frozen=True)
class Reason:
    """Why some rows differ."""

    kind: Kind
    text: str = ""
    """Anything that the kind does not say yet."""


COUNTED = Reason(
    Kind.PAGE_TABLES,
    "The pages are mapped in the process's own page tables too, so Linux counts them, as it does "
    "for any shared memory.",
)
EMULATED = Reason(
    Kind.PAGE_TABLES,
    "The entries are shared, but the emulator fills the process's own page tables, several pages "
    "at a time, and counts that apart (`materialised_pages`).",
)

MOUNT_TYPE = Reason(Kind.SERVER, "The type of a FUSE mount begins with `fuse`.")
MOUNT_POINT = Reason(Kind.SERVER, "Only a kernel makes directories there; any directory will do.")
MAGIC = Reason(
    Kind.SERVER,
    "Every FUSE mount has FUSE's magic number; `/proc/mounts` says `fuse.msharefs`. Under "
    "`msharefs run`, `statfs(2)` says MSHR.",
)
HANDLE = Reason(
    Kind.SERVER, "FUSE makes handles from inode numbers by itself, without asking the server."
)
POSITION = Reason(
    Kind.SERVER, "The kernel keeps the position of an open file, without asking the server."
)
AT_ITS_END = Reason(
    Kind.SERVER, "A file of no bytes is at its end, so the kernel does not ask the server."
)
NOT_ASKED = Reason(Kind.SERVER, "FUSE answers that itself, without a question to the server.")
COPIED = Reason(Kind.SERVER, "FUSE copies an ioctl's argument before the server hears of the call.")
CTIME = Reason(Kind.SERVER, "A server can set a file's times back, except for its ctime.")

UNSERVED = Reason(
    Kind.ATTACHMENT,
    "A child that runs no handlers of fork(3) has its parent's window as plain memory, with the "
    "rights of that moment.",
)

BROKEN = Reason(Kind.DEFECT)
CORRUPTS = Reason(Kind.DEFECT, "It corrupts the shared tables.")
FREED = Reason(Kind.DEFECT, "It is freed at once, as a region's user expects of UNMAP.")

FILLED = Reason(Kind.FILLED)

OPEN = Reason(
    Kind.ATTACHMENT,
    "With `quirks=v3` the window is mapped for all access, so that stores go through as on v3.",
)
LEFT_TO_LINUX = Reason(
    Kind.ATTACHMENT,
    "Memory whose first touches are Linux's is not watched by our userfaultfd any more, and a "
    "mapping of its own. With `-o faults=watched` it is one line.",
)
NOT_EXPANDED = Reason(
    Kind.ATTACHMENT, "No program can set that flag; the library refuses mremap all the same."
)
NO_SUCH_FLAG = Reason(Kind.ATTACHMENT, "That flag exists only in the series' kernel.")

TOUCHER = Reason(
    Kind.ACCOUNTING,
    "Linux charges a page to the process that touches it first, and page tables to the process "
    "they belong to. `msharefs stat` shows what the owner would be charged, data and tables apart.",
)
LOCKED = Reason(
    Kind.ACCOUNTING,
    "A page is locked through a process that maps it, and none of ours is to be charged for it.",
)
HUGE = Reason(
    Kind.ACCOUNTING,
    "Linux makes huge pages of its own shared memory, but not on a tmpfs mounted without `huge=`; "
    "MAP_HUGETLB gives them in either case.",
)

OBJECT_NAME = Reason(Kind.ATTACHMENT, "Its path there ends in `NUMBER.mem`.")
OUTLIVES = Reason(
    Kind.ATTACHMENT, "The attachment lives on after the unmount, and so does the region's server."
)

LATER = Reason(
    Kind.SERVER,
    "It hears of the end when the process's parent does, and then empties the region. Any request "
    "(open, ioctl, mmap) looks at the owner first.",
)

SAFE = Reason(Kind.CHOICE)
SIZE = Reason(Kind.CHOICE, "The memory of a mount is a tmpfs, and may have a bound as any other.")
STICKY = Reason(Kind.CHOICE, "In v3 any user may remove or rename another's region.")
PARTS = Reason(Kind.CHOICE, "A part of a region can be mapped, as with the calls shown in 2026.")
UNSIZED = Reason(Kind.CHOICE, "The region is still unsized.")
LIFE = Reason(Kind.CHOICE, "v3 ends a region with its maker, as `-o owner=process` does.")
