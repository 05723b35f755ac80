"""The two devices that a server needs: /dev/fuse to mount, /dev/userfaultfd to hear of faults.

Each refusal is a sentence that says who may open the device, and what to do. Nothing here loads
libfuse: the command asks before the server is detached.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import shutil
import stat

from msharefs import proc

from . import shortage

FUSE = "/dev/fuse"
USERFAULTFD = "/dev/userfaultfd"

_FUSE_NUMBER = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt; the other's varies
_USERFAULTFD_IOC_NEW = 0xAA << 8  # linux/userfaultfd.h


def check() -> None:
    """OSError with a sentence if this user, on this machine, cannot serve."""
    try:
        fuse = os.open(FUSE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(
            error, "load the module (modprobe fuse); a container needs --device /dev/fuse"
        ) from None
    found = os.fstat(fuse)
    os.close(fuse)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _FUSE_NUMBER:
        raise OSError(
            errno.ENODEV,
            "is no FUSE device (character device 10:229): remove it and make it anew "
            f"(mknod -m 666 {FUSE} c 10 229), or give the container --device {FUSE}",
            FUSE,
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "is missing, and mounts for users that are not root: install the package fuse3, or "
            "mount as root",
            "fusermount3",
        )
    device = open_userfaultfd()
    if device >= 0:
        os.close(device)


def others_allowed() -> bool:
    """Whether this user may mount for others: root may, and all others if fusermount3 allows it."""
    if os.geteuid() == 0:
        return True
    try:
        with open("/etc/fuse.conf", encoding="utf-8") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def open_userfaultfd() -> int:
    """A descriptor of /dev/userfaultfd, for us and for clients, who make their own from it.

    -1: we may not open it and need not, since everybody may use the system call. OSError: we may
    do neither.
    """
    try:
        device = os.open(USERFAULTFD, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in shortage.ERRORS:
            raise
        if _system_call_is_for_all():
            return -1
        raise _refused(
            error,
            "it needs Linux 6.15 or later with CONFIG_USERFAULTFD; a container needs "
            f"--device {USERFAULTFD}; or let everybody use the system call "
            "(sysctl vm.unprivileged_userfaultfd=1)",
            ", or let everybody use the system call (sysctl vm.unprivileged_userfaultfd=1)",
        ) from None
    try:
        os.close(fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        os.close(device)
        if error.errno in shortage.ERRORS:
            raise
        raise OSError(
            errno.ENODEV,
            "is no userfaultfd device: remove it (`grep userfaultfd /proc/misc` has the minor "
            "number, 10 is the major, to make it anew with mknod)",
            USERFAULTFD,
        ) from None
    return device


def _system_call_is_for_all() -> bool:
    """Whether userfaultfd(2) is for every user here, kernel faults included.

    It must be, because clients and their children have to make their own.
    """
    try:
        if proc.sysctl("vm/unprivileged_userfaultfd") != "1":
            return False
    except OSError:
        return False
    from msharefs.native import lib

    made: int = lib.uffd_new(-1)
    if made < 0:  # a container's seccomp filter
        return False
    os.close(made)
    return True


def _refused(error: OSError, absent: str, instead: str = "") -> OSError:
    """Why a device cannot be opened, and what to do; `absent` says so if it does not exist."""
    path = str(error.filename)
    remedy = absent
    if error.errno == errno.EACCES:
        found = os.stat(path)
        group = _group(found.st_gid)
        members = (
            f"join the group {group}, or "
            if found.st_gid and found.st_mode & 0o060 == 0o060
            else ""
        )
        remedy = (
            f"mode {stat.S_IMODE(found.st_mode):04o} of user {found.st_uid} and group {group} "
            f"keeps user {os.geteuid()} out: mount as root, or {members}let users open it "
            f'(chmod 666 {path}; to stay, a udev rule KERNEL=="{os.path.basename(path)}", '
            f'MODE="0666"){instead}'
        )
    elif error.errno == errno.EPERM:
        remedy = f"a container needs --device {path}{instead}"
    return OSError(
        error.errno, f"cannot be opened ({os.strerror(error.errno or 0)}): {remedy}", path
    )


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:  # the group has no name
        return str(number)
