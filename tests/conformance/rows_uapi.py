"""Numbers and structures of the interface, as a C program finds them in our header."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs import installed
from msharefs.conformance.stage import ANON, PAGE, RW, SHARED_FIXED, Memory, Q, errno_name
from msharefs.conformance.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from msharefs.conformance.stage import Stage

SOURCE = """\
#include <msharefs.h>
#include <stddef.h>
#include <stdio.h>
#define FIELD(s, f) \\
    printf(#s "." #f " %zu %zu\\n", offsetof(struct s, f), sizeof ((struct s *)0)->f)
int main(void)
{
    printf("MSHAREFS_CREATE_MAPPING 0x%lx\\n", (unsigned long)MSHAREFS_CREATE_MAPPING);
    printf("MSHAREFS_UNMAP 0x%lx\\n", (unsigned long)MSHAREFS_UNMAP);
    printf("sizeof-create %zu\\nsizeof-unmap %zu\\n", sizeof(struct mshare_create),
           sizeof(struct mshare_unmap));
    FIELD(mshare_create, region_offset);
    FIELD(mshare_create, size);
    FIELD(mshare_create, offset);
    FIELD(mshare_create, prot);
    FIELD(mshare_create, flags);
    FIELD(mshare_create, fd);
    FIELD(mshare_unmap, region_offset);
    FIELD(mshare_unmap, size);
}
"""


@functools.cache
def numbers() -> dict[str, str]:
    """The output of the program."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source, program = directory / "uapi.c", directory / "uapi"
        source.write_text(SOURCE)
        include = installed.prefix() / "include"
        subprocess.run(["cc", "-Wall", "-Werror", "-I", include, "-o", program, source], check=True)
        text = subprocess.check_output([program], text=True)
    return dict(line.split(" ", 1) for line in text.splitlines())


def number(name: str) -> Callable[[Stage], str]:
    return lambda _stage: numbers()[name]


T = Table("Numbers and structures", "1.2")
T("uapi-create", "MSHAREFS_CREATE_MAPPING", "0x40287800", number("MSHAREFS_CREATE_MAPPING"))
T("uapi-unmap", "MSHAREFS_UNMAP", "0x40107801", number("MSHAREFS_UNMAP"))
T("uapi-create-sizeof", "sizeof(struct mshare_create)", "40", number("sizeof-create"))
T("uapi-unmap-sizeof", "sizeof(struct mshare_unmap)", "16", number("sizeof-unmap"))
for struct, field, place in (
    ("create", "region_offset", "0 8"), ("create", "size", "8 8"), ("create", "offset", "16 8"),
    ("create", "prot", "24 4"), ("create", "flags", "28 4"), ("create", "fd", "32 4"),
    ("unmap", "region_offset", "0 8"), ("unmap", "size", "8 8"),
):
    T(f"uapi-{struct}-{field}", f"struct mshare_{struct}: offset and size of {field}", place,
      number(f"mshare_{struct}.{field}"))

T = Table("The documentation's example", "1.3")


def creator(stage: Stage) -> Memory:
    """open, fallocate, CREATE_MAPPING, mmap, as in msharefs.rst."""
    agent = stage.agent
    with open(stage.dir.parent / "mshare_info") as info:
        size = int(info.read())
    file = stage.unsized()  # O_RDWR|O_CREAT|O_EXCL, 0600
    file.call("fallocate", 0, 0, size)
    assert file.create(0, PAGE, RW, SHARED_FIXED | ANON) == "0"
    return Memory(stage, file, agent.call("mmap", 0, size, RW, 1, file.fd, 0))


def used(stage: Stage) -> str:
    made = creator(stage)
    return f"{made.store()}, {made.load()}"


def attacher(stage: Stage) -> str:
    """open(O_RDWR), fstat for the size, mmap of all of it; then the name goes."""
    made = creator(stage)
    made.store()
    agent = stage.process()
    file = made.file.by(agent)
    agent.call("fstat", file.fd, agent.pool)
    size = int.from_bytes(agent.get(agent.pool + 48, 8), "little")
    there = agent.load(file.attach(size))
    return f"{size == Q}, {there}, {agent.say('unlink', file.path)}"


def sample(stage: Stage) -> str:
    """The cover letter's consumer: O_RDONLY, and PROT_READ|PROT_WRITE."""
    made = creator(stage)
    try:
        return str(made.file.by(stage.process(), 0).attach())
    except OSError as error:
        return errno_name(error)


T("doc-creator", "the creator's steps, a store, a load", "ok, 7",
  used)
T("doc-attacher", "the attacher's: st_size is the quantum, a load, unlink", "True, 7, 0", attacher)
T("doc-consumer", "the cover letter's consumer (read-only descriptor, PROT_WRITE)", "EACCES",
  sample, source="1.6, 1.12")
