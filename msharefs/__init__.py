"""msharefs: shared page tables between processes, in user space.

``msharefs.open(path)`` opens a region file on a mounted msharefs and gives a `Region`: map and
unmap objects in it, attach to it, look at its host mm. ``msharefs.create()`` makes one without a
name. Any process that may open the file may do
so; the processes of a region need no common parent, and share no name except the path.

These names are imported on first use, so that the command line starts without loading the C core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Region, create, open  # noqa: A004  # msharefs.open reads like open

__version__ = "0.1.0"
__all__ = ["Region", "__version__", "create", "open"]


def __getattr__(name: str) -> object:
    if name in ("create", "open", "Region"):
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
