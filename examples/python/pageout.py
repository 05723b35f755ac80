"""Reclaim of memory that many processes have mapped: gone for all of them by one call.

    pageout.py NEW_REGION [SIZE [PROCESSES]]       1 GiB and 64 processes, unless you say otherwise

Linux's own MADV_PAGEOUT leaves pages that more than one process has mapped. The region's verb takes
them out of all page tables first. Without swap only pages of a file can leave memory, so that is
what is mapped here; a lock keeps them.
"""

import mmap
import os
import socket
import sys
import tempfile

import msharefs
from msharefs import units, verbs

PAGE = 4096
path = sys.argv[1]
size = units.parse_size(sys.argv[2] if len(sys.argv) > 2 else "1G")
count = int(sys.argv[3]) if len(sys.argv) > 3 else 64
region = msharefs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
region.truncate(-(-size // region.quantum) * region.quantum)
with tempfile.TemporaryFile(dir="/var/tmp") as disk:
    os.truncate(disk.fileno(), size)
    region.map(0, size, flags=mmap.MAP_SHARED | verbs.MAP_FIXED, fd=disk.fileno())
memory = region.attach()


def own() -> int:
    """Bytes of the window that this process has in its own page tables."""
    start, found = region.addresses[0], 0
    with open("/proc/self/smaps") as text:
        for line in text:
            name, *fields = line.split()
            if "-" in name:
                inside = start <= int(name.split("-")[0], 16) < start + len(memory)
            elif name == "Rss:" and inside:
                found += int(fields[0]) << 10
    return found


children = []
for _ in range(count - 1):
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # touches all of it whenever it is asked, or says what it has mapped
        for _, sock in children:
            sock.close()
        ours.close()
        while order := theirs.recv(1):
            if order == b"t":
                memory[0:size:PAGE].tobytes()
            theirs.send(own().to_bytes(8, "little"))
        os._exit(0)
    theirs.close()
    children.append((child, ours))


def all_of_them(order: bytes) -> int:
    """Everybody does that; the sum of what they have mapped then."""
    mapped = 0
    if order == b"t":
        memory[0:size:PAGE].tobytes()
    for _, sock in children:  # one after the other
        sock.send(order)
        mapped += int.from_bytes(sock.recv(8), "little")
    return mapped + own()


def show(what: str, order: bytes = b"?") -> None:
    """A line of figures."""
    mapped = all_of_them(order)
    pages = sum(region.query(0, size))
    print(f"{what:20} {units.size(pages * PAGE):>9} in memory, mapped {units.size(mapped):>9}")


for at in range(0, size, PAGE):
    memory[at] = 7
region.sync(0, size)
show("all have touched all", b"t")
region.advise(0, size, verbs.MADV_PAGEOUT)
show("PAGEOUT")
show("touched again", b"t")
assert set(memory[0:size:PAGE].tobytes()) == {7}, "the data are there"
region.lock(0, size)
try:
    region.advise(0, size, verbs.MADV_PAGEOUT)
except OSError as error:
    print("PAGEOUT while locked", os.strerror(error.errno))
show("locked")
for child, sock in children:
    sock.close()
    os.waitpid(child, 0)
os.unlink(path)
