"""Regions for programs: open, map, attach, look.

The C library does the work, as in every other client; a process that attaches runs the library's
service thread, which does not need the GIL.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import weakref
from fcntl import F_GETFL, fcntl
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from . import verbs
from .native import check, check_errno, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from .documents import VMA, Client, Stat

_SILENT = (
    "an attached process does not answer or does not leave a page fault; let it go on (is it "
    "stopped, or in a debugger?) and try again"
)
_UNSIZED = "it has no size yet; truncate it first, to a multiple of the mount's quantum"
_NO_USERFAULTFD = (
    "this process may make no userfaultfd: its server cannot open /dev/userfaultfd, so the sysctl "
    "vm.unprivileged_userfaultfd must be 1, and userfaultfd(2) be allowed in a container"
)
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_ANSWER_MS = 10_000


def open(path: str | os.PathLike[str], flags: int = os.O_RDWR) -> Region:  # noqa: A001
    """Opens a region file of a mounted msharefs.

    `flags` are those of open(2), O_CREAT included (mode 0600). OSError: as open(2), and ENOTTY if
    the file is not a region.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        return Region(path, fd)
    except BaseException:
        os.close(fd)
        raise


def create(flags: int = os.O_CLOEXEC) -> Region:
    """A region without a name, on the mount of $MSHAREFS_MOUNT or the only one there is.

    This process owns it: it ends when this process exits or closes it, unless `set_owner` hands it
    over before. Others get it by its descriptor (socket.send_fds, pidfd_getfd(2)), and
    `Region(path, fd)` there; see mshare_create in msharefs.h. OSError: ENODEV, or as open(2).
    """
    fd = lib.mshare_create(flags)
    if fd < 0:
        code = ffi.errno
        reason = os.strerror(code)
        if code == errno.ENODEV:
            reason = "there is no msharefs mount, or more than one; name it in $MSHAREFS_MOUNT"
        raise OSError(code, f"making a region without a name: {reason}")
    try:
        return Region(f"(nameless {os.fstat(fd).st_ino})", fd)
    except BaseException:
        os.close(fd)
        raise


def describe(fd: int, path: str, what: str, argument: int = 0) -> Any:
    """What the server of a region that is open says of it; `path` is for messages."""
    sock = check(lib.control_connect(fd), "asking its server", path)
    return _describe(sock, path, what, 0, argument)


def describe_by_number(control: Path, inode: int, what: str) -> Any:
    """The same of a region by its number, through the server's socket.

    ENOENT: there is none, or it is another user's.
    """
    deadline = lib.control_deadline(_ANSWER_MS)
    found = lib.control_connect_path(os.fsencode(control), deadline)
    sock = check(found, "asking the server", os.fspath(control))
    return _describe(sock, f"region {inode}", what, inode)


def _describe(sock: int, path: str, what: str, inode: int, argument: int = 0) -> Any:
    try:
        message = ffi.new("struct msg *", {"op": lib.MSG_DESCRIBE, "arg": [inode, argument]})
        message.text = what.encode()
        fds = ffi.new(f"int[{lib.MSG_FDS}]", [-1] * lib.MSG_FDS)
        result = lib.control_call(sock, message, ffi.NULL, 0, fds)
        if result < 0:
            said = ffi.string(message.text).decode(errors="replace")
            raise OSError(-result, said or os.strerror(-result), path)
        with os.fdopen(fds[0], "rb") as answer:
            answer.seek(0)
            return json.load(answer)
    finally:
        os.close(sock)


class _Attached(NamedTuple):
    """A view, and the owner of its bytes, which lives as long as anything made from the view."""

    view: memoryview
    owner: weakref.ref[Any]

    def release(self) -> bool:
        """Release the view. False: something made from it still uses the bytes."""
        try:
            self.view.release()
        except BufferError:  # someone has the buffer of the view object itself
            return False
        # Slices, casts and most arrays have their buffer from the owner; release() ignores them.
        return self.owner() is None


def _off_t(offset: int) -> int:
    """Bit for bit, as the ioctls have it (u64): what is too large is the rules' to refuse."""
    return offset - (1 << 64) if 1 << 63 <= offset < 1 << 64 else offset


class Region:
    """An open region file; a context manager that detaches and closes.

    Each OSError has errno, a sentence (strerror), and the region's path (filename).

    Leaving it is BufferError while slices or arrays made of a view are alive, as for mmap.mmap.
    """

    def __init__(self, path: str | os.PathLike[str], fd: int) -> None:
        self.path = os.fspath(path)
        self.fd = fd
        self._views: dict[int, _Attached] = {}
        if "\0" in self.path:
            raise ValueError("a path holds no NUL")
        self.stat()  # ENOTTY here, where the path is known, and not at the first use

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self.fd}, {len(self._views)} attached"
        return f"<msharefs.Region {self.path!r} {state}>"

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self.fd < 0

    @property
    def size(self) -> int:
        """Bytes of the region; 0: it has no size yet."""
        return os.fstat(self.fd).st_size

    @property
    def quantum(self) -> int:
        """Bytes that its size and the addresses of attachments are multiples of."""
        return int(self.stat()["quantum_bytes"])

    def truncate(self, size: int) -> None:
        """Sizes the region, once: a multiple of the mount's quantum in bytes, or EINVAL."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"size {size}: a region is sized once, "
                f"to a multiple of its quantum {self.stat()['quantum_bytes']}",
                self.path,
            ) from None

    def map(
        self,
        offset: int,
        size: int,
        prot: int = READ_WRITE,
        flags: int = mmap.MAP_SHARED | verbs.MAP_FIXED | mmap.MAP_ANONYMOUS,
        fd: int = -1,
        fd_offset: int = 0,
    ) -> None:
        """Maps memory at region offset `offset` (bytes), as MSHAREFS_CREATE_MAPPING does."""
        create = verbs.Create(offset, size, fd_offset, prot, flags, fd)

        def rules(region_size: int) -> None:
            verbs.check_create(create, region_size)
            verbs.check_create_range(create, region_size)

        failed = lib.mshare_map(self.fd, _off_t(offset), size, prot, flags, fd, _off_t(fd_offset))
        self._check_change(failed, "mapping", offset, size, rules)

    def map_from(
        self, address: int, size: int, offset: int = 0, prot: int = READ_WRITE
    ) -> memoryview:
        """Moves private memory of this process into the region, at `offset`; bytes.

        All three are multiples of the quantum. The memory is attached afterwards, at its address
        and with its bytes, and this is a view of it; `detach` ends it, nothing else may unmap it.
        `prot` is what the region permits there from now on. EEXIST: something is mapped there in
        the region already. See MSHARE_MAP_FROM in msharefs.h.
        """
        flags = mmap.MAP_SHARED | verbs.MAP_FIXED | lib.MSHARE_MAP_FROM
        failed = lib.mshare_map(self.fd, _off_t(offset), size, prot, flags, -1, _off_t(address))

        def rules(region_size: int) -> None:
            verbs.check_range(offset, size, region_size)
            quantum = self.quantum
            if not size or (address | offset | size) % quantum:
                raise OSError(
                    errno.EINVAL, f"addresses and sizes are multiples of the quantum {quantum:#x}"
                )
            raise OSError(errno.EINVAL, "all of it must be private memory, of small pages")

        reasons = {
            errno.EEXIST: "something is mapped there in the region; unmap it first",
            errno.ENOMEM: "a part of it is not mapped in this process, or memory is short",
            errno.EFAULT: "a touch of it would be a SIGBUS, as beyond the end of a file",
        }
        self._check_change(
            failed, f"moving the memory at {address:#x},", offset, size, rules, reasons
        )
        return self._view(ffi.cast("void *", address), size, writes=bool(prot & mmap.PROT_WRITE))

    def unmap(self, offset: int, size: int) -> None:
        """Takes a range out of the region, everywhere at once; bytes."""
        failed = lib.mshare_unmap(self.fd, _off_t(offset), size)
        rules = partial(verbs.check_unmap, offset, size)
        self._check_change(failed, "unmapping", offset, size, rules)

    def protect(self, offset: int, size: int, prot: int) -> None:
        """Changes the protection of a range, everywhere at once (mmap.PROT_*); bytes.

        ENOMEM: a part of it is not mapped. EBUSY: an attached process does not answer.
        """
        failed = lib.mshare_protect(self.fd, _off_t(offset), size, prot)
        rules = partial(verbs.check_protect, offset, size, prot, 0)
        self._check_change(failed, "protecting", offset, size, rules)

    def advise(self, offset: int, size: int, advice: int) -> None:
        """madvise(2) of a range for all attached processes (mmap.MADV_*); bytes. See msharefs.h."""
        failed = lib.mshare_advise(self.fd, _off_t(offset), size, advice)
        rules = partial(verbs.check_advise, offset, size, advice, 0)
        self._check_change(failed, f"advice {advice} for", offset, size, rules)

    def lock(self, offset: int, size: int, flags: int = 0) -> None:
        """Brings a range into memory and keeps it there, on the account of the region's owner.

        ENOMEM: a part of it is not mapped, or more than the owner's RLIMIT_MEMLOCK.
        """
        failed = lib.mshare_lock(self.fd, _off_t(offset), size, flags)
        rules = partial(verbs.check_lock, offset, size, flags)
        self._check_change(failed, "locking", offset, size, rules)

    def unlock(self, offset: int, size: int) -> None:
        """Takes the lock off a range."""
        failed = lib.mshare_unlock(self.fd, _off_t(offset), size)
        self._check_change(failed, "unlocking", offset, size, self._range(offset, size))

    def mbind(
        self, offset: int, size: int, mode: int, nodes: Iterable[int] = (), flags: int = 0
    ) -> None:
        """Decides on which memory nodes pages of a range are made, by MPOL_* and MPOL_MF_*."""
        mask = sum(1 << node for node in set(nodes))
        words = [mask >> 64 * at & (1 << 64) - 1 for at in range(mask.bit_length() // 64 + 1)]
        given = ffi.new("unsigned long[]", words) if mask else ffi.NULL
        most = 64 * len(words) + 1 if mask else 0
        failed = lib.mshare_mbind(self.fd, _off_t(offset), size, mode, given, most, flags)
        rules = partial(verbs.check_mbind, offset, size, mode, flags)
        self._check_change(failed, f"memory policy {mode} for", offset, size, rules)

    def sync(self, offset: int, size: int, flags: int = verbs.MS_SYNC) -> None:
        """Has the disks have what was stored in the files of a range: msync(2)."""
        failed = lib.mshare_sync(self.fd, _off_t(offset), size, flags)
        rules = partial(verbs.check_sync, offset, size, flags)
        self._check_change(failed, "syncing", offset, size, rules)

    def query(self, offset: int, size: int) -> bytes:
        """Which pages of a range are in memory: for each a byte, 1 or 0, as from mincore(2)."""
        vec = ffi.new("unsigned char[]", verbs.page_up(size) // verbs.PAGE)
        failed = lib.mshare_query(self.fd, _off_t(offset), size, vec)
        self._check_change(failed, "querying", offset, size, self._range(offset, size))
        return bytes(vec)

    def seal(self, offset: int, size: int) -> None:
        """Makes the mappings of a range stay as they are, for all and for ever (EPERM)."""
        failed = lib.mshare_seal(self.fd, _off_t(offset), size)
        self._check_change(failed, "sealing", offset, size, self._range(offset, size))

    def set_owner(self, pidfd: int) -> None:
        """Hands the region to the process of a pidfd (os.pidfd_open); its owner can, and root."""
        if lib.mshare_set_owner(self.fd, pidfd):
            code = ffi.errno
            reason = {
                errno.EBADF: "that is no pidfd; os.pidfd_open(pid) makes one",
                errno.ESRCH: "that process has ended, or the mount's server does not see it",
                errno.EPERM: "only its owner can hand it over, and root",
                errno.EACCES: "the region is open for reading only; open it with O_RDWR",
                errno.EINVAL: "it has ended with its owner; make a new one",
            }.get(code, os.strerror(code))
            raise OSError(code, f"a new owner (pidfd {pidfd}): {reason}", self.path)

    @staticmethod
    def _range(offset: int, size: int) -> Callable[[int], object]:
        return partial(verbs.check_range, offset, size)

    def _check_change(
        self,
        failed: bool,
        verb: str,
        offset: int,
        size: int,
        rules: Callable[[int], object],
        reasons: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """OSError with errno and the reason if `failed`; `rules` (for a size) know most reasons."""
        if not failed:
            return
        code, region_size = ffi.errno, os.fstat(self.fd).st_size
        reason = reasons.get(code, os.strerror(code))
        if code in reasons:
            pass
        elif code == errno.EBUSY:
            reason = f"nothing is changed: {self._refusal(_SILENT)}"
        elif code == errno.EACCES and fcntl(self.fd, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            reason = "the region is open for reading only; open it with O_RDWR"
        elif not region_size:
            reason = _UNSIZED
        else:
            try:
                rules(region_size)
            except OSError as broken:
                reason = str(broken.strerror) if broken.errno == code else reason
            else:
                reason = self._refusal(reason) if code in verbs.EXPLAINED else reason
        raise OSError(
            code, f"{verb} {size} bytes at {offset:#x} of the region: {reason}", self.path
        )

    def _refusal(self, otherwise: str) -> str:
        """Why the server has refused our last change, in its words; or `otherwise`."""
        try:
            said = str(self.describe("refusal"))
        except OSError:
            said = ""
        return said or otherwise

    def attach(
        self,
        addr: int = 0,
        prot: int | None = None,
        flags: int = 0,
        budget: int | None = None,
        *,
        offset: int = 0,
        size: int = 0,
    ) -> memoryview:
        """Attaches the region; all of it, holes included, as a view of bytes.

        Or a part: `size` bytes from `offset` on, both multiples of its quantum; size 0 is the rest.
        Any number of parts may be attached, and each of them more than once.

        The view is writable if the region is open for writing, and `prot`, if given, has
        PROT_WRITE. Touching a hole is SIGSEGV, as in C. `flags` may have MAP_FIXED,
        MAP_FIXED_NOREPLACE. The region stays attached until `detach` or `close`, even if this
        object is collected before. `budget` is the number of bytes of its own page tables that this
        process keeps for it; 0: no limit; None: MSHAREFS_PT_BUDGET or the mount decides
        (mshare_budget in msharefs.h).
        """
        where = f"at {addr:#x}" if addr else "anywhere"
        writes = fcntl(self.fd, F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if prot is not None:
            if prot & mmap.PROT_WRITE and not writes:
                raise OSError(
                    errno.EACCES, "it is open for reading only; open it with O_RDWR", self.path
                )
            writes = bool(prot & mmap.PROT_WRITE)
        flags = flags & ~mmap.MAP_SHARED | (0 if writes else lib.MSHARE_ATTACH_READ)
        base = lib.mshare_attach(self.fd, _off_t(offset), size, ffi.cast("void *", addr), flags)
        if int(ffi.cast("intptr_t", base)) == -1:
            code = ffi.errno
            reason = self._why_unattached(code, offset, size)
            if code == errno.EPERM and not addr:
                reason = _NO_USERFAULTFD
            raise OSError(code, f"attaching {where}: {reason}", self.path)
        if budget is not None and lib.mshare_budget(base, budget):
            code = ffi.errno
            lib.mshare_detach(base)
            raise OSError(
                code,
                f"a budget of {budget} bytes: must be {lib.BUDGET_MIN_BYTES} or more, or 0",
                self.path,
            )
        return self._view(base, size or self.size - offset, writes=writes)

    def _view(self, base: Any, size: int, *, writes: bool) -> memoryview:
        """A view of what is attached at `base`, until it is detached."""
        owner = ffi.buffer(base, size)
        view = memoryview(owner).cast("B")
        if not writes:
            view = view.toreadonly()
        self._views[int(ffi.cast("uintptr_t", base))] = _Attached(view, weakref.ref(owner))
        return view

    def _why_unattached(self, code: int, offset: int, size: int) -> str:
        whole = self.size
        if code == errno.EINVAL and not whole:
            return _UNSIZED
        if code == errno.EINVAL and (offset or size):
            quantum = self.quantum
            if offset % quantum or size % quantum:
                return (
                    f"a part begins and ends at multiples of the quantum {quantum:#x}, "
                    f"not at {offset:#x} and {offset + size:#x}"
                )
            if not 0 <= offset < whole or offset + size > whole:
                return f"[{offset:#x}, +{size:#x}) is not inside {whole:#x}, the region's size"
        return os.strerror(code)

    @property
    def addresses(self) -> list[int]:
        """The addresses at which this object has attached the region."""
        return list(self._views)

    def detach(self, view: memoryview | None = None) -> None:
        """Detaches `view`, or all.

        This releases the view. BufferError: slices, casts or arrays made from it are alive; then
        the memory stays attached until they are gone and this is called again. EINVAL: not ours.
        """
        wanted = {
            address: attached
            for address, attached in self._views.items()
            if view is None or attached.view is view
        }
        if view is not None and not wanted:
            raise OSError(errno.EINVAL, "that view is not attached", self.path)
        in_use = []
        for address, attached in wanted.items():
            if not attached.release():
                in_use.append(f"{address:#x}")
                continue
            del self._views[address]
            failed = lib.mshare_detach(ffi.cast("void *", address))
            check_errno(failed, f"detaching {address:#x}", self.path)
        if in_use:
            raise BufferError(
                f"{self.path}: memory attached at {', '.join(in_use)} is in use: delete what was "
                "made of its view (slices, casts, arrays), then detach or close again"
            )

    def close(self) -> None:
        """Detaches and closes; a second call does nothing.

        BufferError, as from `detach`: slices or arrays of a view are alive; the region stays open.
        """
        self.detach()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def stat(self) -> Stat:
        """Size, memory, page tables, owner and counters: `msharefs stat --json`."""
        return cast("Stat", {"name": os.path.basename(self.path), **self.describe("stat")})

    def _repr_html_(self) -> str:
        """For notebooks: the figures, and a map of the page tables."""
        from .notebook import region_html

        found = self.stat()
        pagetable = self.describe("pagetable") if found["size_bytes"] else None
        return region_html(self.path, found, pagetable)

    def maps(self) -> list[VMA]:
        """The VMAs of the region: `msharefs maps --json`."""
        vmas: list[VMA] = self.describe("maps")
        return vmas

    def clients(self) -> list[Client]:
        """The processes that have it attached: `msharefs clients --json`."""
        found: list[Client] = self.describe("clients")
        return found

    def describe(self, what: str, argument: int = 0) -> Any:
        """One of "stat", "maps", "pagetable", "clients", "audit", "check", as the server has it.

        "trace" takes an argument, the number of the first event, and so does "watch-touches": for
        how many nanoseconds first touches are not left to Linux.
        """
        return describe(self.fd, self.path, what, argument)
