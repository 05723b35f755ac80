"""Mounting, unmounting, read-only and noexec mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from msharefs.conformance import reasons
from msharefs.conformance.stage import EXEC, READ, RW, File, Memory, Q, said
from msharefs.conformance.table import Table
from msharefs.server import options, server

from support import libc, proc
from support.calls import NOBODY, in_child
from support.libc import MNT_DETACH, MS_NOEXEC, MS_RDONLY

if TYPE_CHECKING:
    from pathlib import Path

    from .ours import OwnStage as Stage
    from support.server import Mount

def start(*arguments: str) -> str:
    """`msharefs mount` with these arguments: "mounted" or "refused"."""
    done = subprocess.run(
        [sys.executable, "-m", "msharefs", "mount", *arguments],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0 or done.stderr
    return "refused" if done.returncode else "mounted"


def mount_with(stage: Stage, option: str) -> str:
    """A mount with one option, on a directory of its own; it is taken away again."""
    directory = stage.elsewhere / "mnt"
    directory.mkdir()
    try:
        answer = start("-o", option, str(directory))
        if answer == "mounted":
            subprocess.run([sys.executable, "-m", "msharefs", "umount", str(directory)], check=True)
        return answer
    finally:
        directory.rmdir()


def as_user(stage: Stage) -> str:
    """The server's start, by a user who may open no userfaultfd."""
    directory = stage.dir.parent.parent / "users"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    try:
        chosen = options.parse([], directory)
        return (
            "refused"
            if said(lambda: in_child(lambda: server.start(chosen), uid=NOBODY, gid=NOBODY))
            in ("EPERM", "EACCES")
            else "mounted"
        )
    finally:
        directory.rmdir()


def fstype(stage: Stage) -> str:
    return next(each.fstype for each in proc.mounts() if each.path == str(stage.dir.parent))


T = Table("Mounting", "1.2, 1.5, C")
T("mount-type", "type in /proc/self/mountinfo", "msharefs", fstype, source="1.2",
  ours="fuse.msharefs", why=reasons.MOUNT_TYPE)
T("mount-point", "/sys/fs/mshare is there to mount on", "yes",
  lambda _: "yes" if os.path.isdir("/sys/fs/mshare") else "no", source="1.2", ours="no",
  why=reasons.MOUNT_POINT)
T("mount-size", "mount with -o size=1G", "refused", lambda s: mount_with(s, "size=1G"),
  ours="mounted", why=reasons.SIZE)
T("mount-mode", "mount with -o mode=0700", "refused", lambda s: mount_with(s, "mode=0700"))
T("mount-user", "mount by a user", "refused", as_user)


def instances(stage: Stage) -> str:
    """Whether a region of one mount is seen in another."""
    stage.unsized("only-here")
    other = stage.mount()
    return "yes" if (other.path / "only-here").exists() else "no"


T("mount-instances", "a region of one mount is seen in another", "no", instances, source="1.5")

T = Table("Unmounting", "C")


def on(stage: Stage, mount: Mount, name: str = "r") -> File:
    """A sized region of another mount, with a page in it."""
    agent = stage.agent
    path = str(mount.path / name)
    fd = agent.call("open", path, os.O_RDWR | os.O_CREAT, 0o600)
    file = File(agent, fd, path)
    file.call("ftruncate", Q)
    assert file.create() == "0"
    return file


def in_use(stage: Stage, how: str) -> str:
    """umount(2) while a descriptor is open, or an attachment is left."""
    mount = stage.mount()
    file = on(stage, mount)
    if how == "attached":
        file.attach()
        file.call("close")
    return said(lambda: libc.umount(mount.path))


T("umount-open", "umount while a region is open", "EBUSY", lambda s: in_use(s, "open"))
T("umount-attached", "umount while one is attached, all descriptors closed", "EBUSY",
  lambda s: in_use(s, "attached"), ours="0",
  why=reasons.OUTLIVES)


def detached_mount(stage: Stage) -> str:
    """umount2(MNT_DETACH), and the attachment afterwards."""
    mount = stage.mount()
    file = on(stage, mount)
    memory = Memory(stage, file, file.attach())
    memory.store()
    answer = said(lambda: libc.umount(mount.path, MNT_DETACH))
    return f"{answer}, {memory.load()}, {memory.store(1, 3)}"


T("umount-detach", "umount2(MNT_DETACH) while one is attached; a load, a store", "0, 7, ok",
  detached_mount)


def gone(stage: Stage) -> str:
    """After umount and a new mount on the same directory."""
    mount = stage.mount()
    on(stage, mount).call("close")
    mount.stop()
    mount.start()
    return "gone" if not (mount.path / "r").exists() else "there"


T("umount-regions", "a sized region, after umount and a new mount", "gone", gone)

T = Table("Read-only and noexec mounts", "C")


class Bound:
    """A directory, that of the row unless named, once more elsewhere, with other flags."""

    def __init__(self, stage: Stage, flags: int, what: Path | None = None) -> None:
        self._what = what or stage.dir
        self._path = stage.elsewhere / "bound"
        self._flags = flags

    def __enter__(self) -> Path:
        self._path.mkdir()
        libc.bind(self._what, self._path)
        libc.bind("none", self._path, libc.MS_REMOUNT | self._flags)
        return self._path

    def __exit__(self, *_: object) -> None:
        libc.umount(self._path, MNT_DETACH)
        self._path.rmdir()


def bound(stage: Stage, flags: int, function: str, *arguments: int) -> str:
    """A call on the name of a region there, or on a new name."""
    stage.region().call("close")
    with Bound(stage, flags) as path:
        name = "new" if arguments and arguments[0] & os.O_CREAT else "r"
        return stage.agent.say(function, str(path / name), *arguments)


T("ro-create", "create on a read-only mount", "EROFS",
  lambda s: bound(s, MS_RDONLY, "open", os.O_RDWR | os.O_CREAT, 0o600), plain=True)
T("ro-open-rw", "open for writing", "EROFS",
  lambda s: bound(s, MS_RDONLY, "open", os.O_RDWR), plain=True)
T("ro-open", "open for reading", "0", lambda s: bound(s, MS_RDONLY, "open", os.O_RDONLY),
  plain=True)
T("ro-truncate", "truncate", "EROFS", lambda s: bound(s, MS_RDONLY, "truncate", Q), plain=True)
T("ro-unlink", "unlink", "EROFS", lambda s: bound(s, MS_RDONLY, "unlink"), plain=True)


def through_read_only(stage: Stage) -> str:
    """CREATE_MAPPING by a read-only descriptor there, and a store through an attachment by it."""
    maker = stage.region()
    with Bound(stage, MS_RDONLY) as path:
        fd = stage.agent.call("open", str(path / "r"), os.O_RDONLY)
        file = File(stage.agent, fd, maker.path)
        answer = file.create()
        if answer != "0":
            assert maker.create() == "0"
        base = file.attach(prot=READ)
        store = stage.agent.store(base, 7)
        stage.agent.call("close", fd)
        stage.agent.call("munmap", base, Q)
    return f"{answer}, {store}"


T("ro-create-mapping", "CREATE_MAPPING by a read-only descriptor, a store through an attachment",
  "0, ok", through_read_only, default="EACCES, SIGSEGV ACCERR", why=reasons.SAFE)


def executable(stage: Stage) -> str:
    stage.region().call("close")
    with Bound(stage, MS_NOEXEC) as path:
        fd = stage.agent.call("open", str(path / "r"), os.O_RDWR)
        answer = File(stage.agent, fd, stage.path()).mmap(prot=RW | EXEC)
        stage.agent.call("close", fd)
    return answer


T("noexec", "attach with PROT_EXEC on a noexec mount", "EPERM", executable, source="C")
