"""A region's host mm, to look at.

To change it takes a `hostmm.HostMM`, which is a view that may write. A plain view has the host mm
mapped read-only, so that not even a bug can change a region by looking at it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Self

from msharefs.native import check, ffi, lib

from .files import object_paths, records_path
from .objects import Record
from .owners import KINDS, Owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class View:
    """The `.mm` of one region, mapped, and its `.mem`, open. `name` is for messages.

    EUCLEAN: it is not a host mm, or not yet. Figures change while clients run.
    """

    _ACCESS = os.O_RDONLY

    def __init__(self, name: str, directory: Path, ident: int) -> None:
        self.name = name
        self._records = records_path(directory, ident)
        self._mm = ffi.new("struct mm *")
        paths = object_paths(directory, ident)
        mm_fd = os.open(paths[0], self._ACCESS | os.O_CLOEXEC)
        try:
            self.mem_fd = os.open(paths[1], self._ACCESS | os.O_CLOEXEC)
            try:
                check(lib.mm_open(self._mm, mm_fd), f"{name}: its host mm {paths[0]}")
                check(lib.guard_add(self._mm), f"{name}: guarding its host mm")
            except BaseException:
                os.close(self.mem_fd)
                raise
        except BaseException:
            os.close(mm_fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of both objects; the files stay."""
        lib.guard_remove(self._mm)
        lib.mm_close(self._mm)
        os.close(self.mem_fd)

    @property
    def mm(self) -> Any:
        """The core's `struct mm *`."""
        return self._mm

    def check_whole(self) -> None:
        """EUCLEAN: its file was made shorter while it was mapped, as any attached process can."""
        if lib.guard_cut(self._mm) or os.fstat(self.fd).st_size < self._mm.map_size:
            raise OSError(
                errno.EUCLEAN,
                f"{self.name}: an attached process has made its host mm shorter, or the state "
                "directory is full: remove the region and make it anew",
            )

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return int(self._mm.size)

    @property
    def quantum(self) -> int:
        """Bytes that attach addresses are multiples of."""
        return int(self._mm.quantum)

    @property
    def fd(self) -> int:
        """Descriptor of the `.mm` object."""
        return int(self._mm.fd)

    def attached(self) -> int:
        """How many attachments there are, connected or not. None that we know of if it is cut."""
        return int(lib.mm_clients(self._mm, ffi.NULL, 0))

    def attachments(self) -> Iterator[Any]:
        """A struct mm_client of each, by slot; they live as long as the iteration."""
        count = self.attached()
        clients = ffi.new("struct mm_client[]", count)
        yield from clients[0 : min(count, lib.mm_clients(self._mm, clients, count))]

    def attachment(self, slot: int) -> Any:
        """The struct mm_client of a slot; None: it is free."""
        client = ffi.new("struct mm_client *")
        return client if lib.mm_client(self._mm, slot, client) else None

    def count(self) -> int:
        """How many VMAs there are."""
        return check(lib.mm_vmas(self._mm, ffi.NULL, 0), f"{self.name}: reading its VMAs")

    def vmas(self) -> Any:
        """The mappings: an array of struct mm_vma, in order."""
        count = self.count()
        vmas = ffi.new("struct mm_vma[]", count)
        lib.mm_vmas(self._mm, vmas, count)
        return vmas

    def ranges(self) -> list[tuple[int, int]]:
        """The mappings: start and end of each VMA."""
        return [(vma.start, vma.end) for vma in self.vmas()]

    def executes(self) -> bool:
        """Whether anything executable is mapped."""
        return bool(lib.hostmm_has_exec(self._mm, 0, self.size))

    def stat(self) -> Any:
        """The figures, as struct mshare_stat."""
        raw = ffi.new("struct mshare_stat *")
        check(lib.mm_stat(self._mm, self.mem_fd, raw), f"{self.name}: reading its figures")
        return raw

    def owner(self) -> Owner:
        """The recorded owner, who made the region."""
        raw = self.stat()
        kinds = {number: kind for kind, number in KINDS.items()}
        return Owner(
            raw.owner_pid,
            raw.owner_start_time,
            os.fsdecode(ffi.string(lib.mm_owner_cgroup(self._mm), lib.MM_CGROUP_LEN)),
            kinds[lib.mm_owner_kind(self._mm)],
        )

    def object_path(self, number: int) -> str:
        """The path of the file of object `number`; "lost" if nobody knows it any more."""
        record = Record.read(self._records / str(number))
        return record.path if record is not None else "lost"
