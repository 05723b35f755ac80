"""The calls of 2026: the same questions, asked of a region and not of an attachment.

LWN's report of LSFMM+BPF 2026 names some of them, and compares them with calls of Linux; their
form, the other calls, and the answers in detail are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msharefs import installed

if TYPE_CHECKING:
    from .agent import Agent, Argument

LWN, CHOICE = "LWN", "our choice"

SOURCES = {
    "mshare_create": LWN,
    "mshare_attach": LWN,
    "mshare_detach": LWN,
    "mshare_map": LWN,
    "mshare_protect": LWN,
    "mshare_advise": LWN,
    "mshare_unmap": CHOICE,
    "mshare_lock": CHOICE,
    "mshare_unlock": CHOICE,
    "mshare_mbind": CHOICE,
    "mshare_sync": CHOICE,
    "mshare_query": CHOICE,
    "mshare_seal": CHOICE,
    "mshare_set_owner": CHOICE,
}
"""Each call, and who says that there is such a call."""

# What does to a region what this call does to the memory of one process, and the number of its
# arguments after the size.
_OF_REGION = {
    "mprotect": ("mshare_protect", 1),
    "munmap": ("mshare_unmap", 0),
    "madvise": ("mshare_advise", 1),
    "mlock": ("mshare_lock", 0),
    "mlock2": ("mshare_lock", 1),
    "munlock": ("mshare_unlock", 0),
    "msync": ("mshare_sync", 1),
    "mincore": ("mshare_query", 1),
    "mseal": ("mshare_seal", 0),
}

MAP_SHARED, PROT_WRITE = 0x1, 0x2
ATTACH_READ = 0x1000000  # MSHARE_ATTACH_READ
RTLD_NOW, RTLD_GLOBAL = 0x2, 0x100


def learn(agent: Agent) -> None:
    """Gives a process, and its children, the calls of the library."""
    path = str(installed.libdir() / "libmsharefs.so.1")
    assert agent.call("dlopen", path, RTLD_NOW | RTLD_GLOBAL), path


def attach(
    agent: Agent, fd: int, offset: int, length: int, prot: int, flags: int, addr: int
) -> int:
    """What mmap(2) of a region file is; its address."""
    only_read = 0 if prot & PROT_WRITE else ATTACH_READ
    return agent.call("mshare_attach", fd, offset, length, addr, flags & ~MAP_SHARED | only_read)


def say(agent: Agent, fd: int, offset: int, size: int, function: str, *arguments: Argument) -> str:
    """What a call of Linux is for a region, on a range of it."""
    name, count = _OF_REGION[function]
    return agent.say(name, fd, offset, size, *arguments[:count])
