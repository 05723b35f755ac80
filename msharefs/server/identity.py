"""Which file it is: what a record of an object says of it, for a server that did not open it.

An inode number comes again when its file has gone, also within milliseconds, and so does a device
number. What does not come again is the generation in a file's handle (name_to_handle_at(2)), and
the time of its birth. Huge pages have neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from msharefs.native import check, ffi, lib


@dataclass(frozen=True)
class Identity:
    """A file, as its file system tells it from others."""

    device: int
    inode: int
    handle: str = ""
    """Type and bytes, in hexadecimal; empty: it has none."""
    born: int = 0
    """In ns; 0: not known."""
    mount: int = 0
    """The mount it was seen on, by a number that no other mount of this boot has."""
    unique: bool = False
    """No other file has these, whenever it is made."""

    def is_same(self, other: Identity) -> bool:
        """Whether it is the same file, as far as its file system can tell."""
        mine = self.device, self.inode, self.handle, self.born, self.unique
        if mine != (other.device, other.inode, other.handle, other.born, other.unique):
            return False
        # Numbers alone say something only as long as the file system stays mounted.
        return self.unique or self.mount == other.mount != 0


class Looked(NamedTuple):
    """A file that was looked at."""

    identity: Identity
    mode: int
    owner: int
    """Its user."""


def look(fd: int) -> Looked:
    """Looks at the file of a descriptor. For a thread: its file system is asked."""
    found = ffi.new("struct identity *")
    check(lib.identity_read(fd, found), "looking at a file")
    size = found.handle_bytes
    handle = f"{found.handle_type:x}:{bytes(found.handle[0:size]).hex()}" if size else ""
    unique = bool(found.born or found.has_generation)
    known = Identity(found.device, found.inode, handle, found.born, found.mount, unique)
    return Looked(known, found.mode, found.uid)
