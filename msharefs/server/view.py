"""A region's host mm, to look at.

To change it takes a `hostmm.HostMM`, which is a view that may write. A plain view has the host mm
mapped read-only, so that not even a bug can change a region by looking at it.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from msharefs import looking
from msharefs.native import check, ffi, lib

from .files import adopted_path, object_paths, records_path
from .memory import FILE, Memory
from .objects import Record, is_gone, records
from .owners import KINDS, Owner
from .pinned import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

# A struct mm_vma in words of 64 bits, and in halves of them.
_WORDS = ffi.sizeof("struct mm_vma") // 8
_START, _END = (ffi.offsetof("struct mm_vma", field) // 8 for field in ("start", "end"))
_OBJECT, _FLAGS = (ffi.offsetof("struct mm_vma", field) // 4 for field in ("object", "flags"))


class View:
    """The `.mm` of one region, mapped, and its `.mem`. `name` is for messages.

    EUCLEAN: it is not a host mm, or not yet. Figures change while clients run.
    """

    def __init__(self, name: str, directory: Path, ident: int) -> None:
        self.name = name
        self._records = records_path(directory, ident)
        self._mm = ffi.new("struct mm *")
        self._paths = object_paths(directory, ident)
        self._adopted = adopted_path(directory, ident)
        self.memory = Memory.read(self._adopted)
        """What its memory is if processes map that without us (adopted.py)."""
        self._files: tuple[tuple[int, int], ...] = ()
        mm_fd, self._mem_fd = self._open_files()
        try:
            check(lib.mm_open(self._mm, mm_fd), f"{name}: its host mm {self._paths[0].name}")
        except BaseException:
            os.close(mm_fd)
            os.close(self._mem_fd)
            raise
        try:
            check(lib.guard_add(self._mm), f"{name}: guarding its host mm")
        except BaseException:
            lib.mm_close(self._mm)
            os.close(self._mem_fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of both objects; the files stay."""
        lib.guard_remove(self._mm)
        lib.mm_close(self._mm)
        if self._mem_fd >= 0:
            os.close(self._mem_fd)
            self._mem_fd = -1

    def open_files(self) -> None:
        """Opens the descriptors again, if they are closed."""
        if self._mem_fd < 0:
            self._reopen()

    def close_files(self) -> None:
        """Closes the descriptors; the mapping stays, and both are opened again when needed."""
        if self._mem_fd >= 0:
            os.close(self._mem_fd)
            os.close(self._mm.fd)
            self._mem_fd = self._mm.fd = -1

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
        """Descriptor of the `.mm` object; not to be kept, as it may be closed meanwhile."""
        self.open_files()
        return int(self._mm.fd)

    @property
    def mem_fd(self) -> int:
        """Descriptor of the `.mem` object; not to be kept, either."""
        self.open_files()
        return self._mem_fd

    @property
    def identity(self) -> tuple[int, int]:
        """st_dev and st_ino of the `.mm` object."""
        return self._files[0]

    @property
    def adopted(self) -> bool:
        """Whether processes map its memory without us."""
        return self.memory is not None

    @property
    def memory_identity(self) -> tuple[int, int]:
        """st_dev and st_ino of the `.mem` object, as in /proc/PID/maps."""
        return self._files[1]

    def memory_exchanged(self) -> None:
        """`.mem` is another file now."""
        self.close_files()
        self._files = ()
        self.memory = Memory.read(self._adopted)
        self._reopen()

    def _reopen(self) -> None:
        self._mm.fd, self._mem_fd = self._open_files()

    def _open(self, *paths: Path) -> list[int]:
        fds: list[int] = []
        try:
            fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _open_files(self) -> list[int]:
        """Opens both files. ESTALE: they are others than those we opened first."""
        fds: list[int] = []
        try:
            mm, mem = self._paths
            if self.memory is not None and not self.memory.held:
                fds = self._open(mm)
                fds.append(self.memory.open())
            elif self.memory is not None:
                fds = self._open(mm)
                if os.readlink(os.readlink(mem)) != f"/memfd:{mem.name} (deleted)":
                    raise OSError(errno.ESTALE, f"{self.name}: its server has ended")
                # Who has it open for writing maps it.
                fds.append(os.open(mem, os.O_RDONLY | os.O_CLOEXEC))
            else:
                fds = self._open(mm, mem)
            found = tuple((status.st_dev, status.st_ino) for status in map(os.fstat, fds))
            if self.memory is not None and self.memory.kind == FILE:
                found = (found[0], (self.memory.device, self.memory.inode))
            if found != (self._files or found):
                raise OSError(
                    errno.ESTALE, f"{self.name}: its files {self._paths[0].name} are others"
                )
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, FileNotFoundError) and self._files:
                gone = Path(error.filename).name
                raise OSError(
                    errno.ESTALE, f"{self.name}: its file {gone} is gone from the state directory"
                ) from None
            raise
        self._files = found
        return fds

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
        vmas = self.vmas()
        words = memoryview(ffi.buffer(vmas)).cast("Q")  # there may be 65530
        return list(zip(words[_START::_WORDS], words[_END::_WORDS], strict=True))

    def mapped_objects(self) -> set[tuple[int, int]]:
        """The objects that VMAs name, with the flags that they have there; 0 is the memory."""
        vmas = self.vmas()
        halves = memoryview(ffi.buffer(vmas)).cast("I")
        step = 2 * _WORDS
        return set(zip(halves[_OBJECT::step], halves[_FLAGS::step], strict=True))

    def executes(self) -> bool:
        """Whether anything executable is mapped."""
        return bool(lib.hostmm_has_exec(self._mm, 0, self.size))

    def stat(self) -> Any:
        """The figures, as struct mshare_stat."""
        raw = ffi.new("struct mshare_stat *")
        mem_fd = self.mem_fd  # mm_stat() uses that of the .mm object, too
        check(lib.mm_stat(self._mm, mem_fd, raw), f"{self.name}: reading its figures")
        if self.memory is not None and self.memory.kind == FILE:
            usage = ffi.new("struct mm_usage *")
            found = lib.mm_usage(self._mm, 0, self.size, usage)
            check(found, f"{self.name}: walking its page tables")
            raw.rss = usage.present * mmap.PAGESIZE  # of its pages, those that are mapped
        return raw

    def audit(self) -> Any:
        """The invariants of the whole region, checked: a struct mm_audit."""
        raw = ffi.new("struct mm_audit *")
        self.open_files()  # mm_audit() uses that of the .mm object
        check(lib.mm_audit(self._mm, raw), f"{self.name}: auditing it")
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

    def policy(self, vma: Any) -> Policy:
        """The memory policy of a mapping of its own memory."""
        return Policy.at(self.mem_fd, vma.start)

    def recorded_objects(self) -> tuple[dict[int, Record], list[str]]:
        """The records of its objects, by number, and the names of files that are none."""
        return records(self._records)

    def is_lost(self, number: int, record: Record) -> bool:
        """Whether the file of an object is not at its place; False where that cannot be told."""
        del number
        return looking.look([record.path], lambda _: is_gone(record)).seen.get(record.path, False)

    def knows_object(self, number: int) -> bool:
        """Whether an object could be recorded anew."""
        del number
        return False

    def object_path(self, number: int) -> str:
        """The path of the file of object `number`; "lost" if nobody knows it any more."""
        record = Record.read(self._records / str(number))
        return record.path if record is not None else "lost"
