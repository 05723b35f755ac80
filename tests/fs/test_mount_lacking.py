"""What `msharefs mount` says, and does, where the machine lacks something or the user is not root.

Most of it is in a container: devices and file systems are the test's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.baredev import in_bare_dev
from support.calls import AS_NOBODY, NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

MSHAREFS = [sys.executable, "-P", "-m", "msharefs"]
SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")


@contextlib.contextmanager
def unprivileged_userfaultfd(value: int) -> Iterator[None]:
    """The sysctl, set for a while: it is the machine's, and another run may want it otherwise."""
    with SYSCTL.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        SYSCTL.write_text(f"{value}\n")
        try:
            yield
        finally:
            SYSCTL.write_text(before)


def test_no_devices(tmp_path: Path) -> None:
    command = f"{' '.join(MSHAREFS)} mount {tmp_path}"
    done = in_bare_dev(f"set +e; {command}; echo $?; mknod /dev/fuse c 10 229; {command}; echo $?")
    assert done.stdout == "1\n1\n", done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("msharefs: /dev/fuse: cannot be opened (No such file or directory): ")
    assert second.startswith("msharefs: /dev/userfaultfd: cannot be opened")
    assert "--device /dev/userfaultfd" in second


def test_the_kernel_refuses_to_mount(tmp_path: Path) -> None:
    """A container without CAP_SYS_ADMIN: libfuse's words are passed on."""
    command = f"setpriv --bounding-set=-sys_admin {' '.join(MSHAREFS)} mount {tmp_path}"
    done = in_bare_dev(f"""set +e
        mknod /dev/fuse c 10 229; mknod /dev/userfaultfd c 10 257
        {command}; echo $?; ls /dev/shm""")
    assert done.stdout == "1\n", done.stderr
    assert done.stderr.startswith(f"msharefs: {tmp_path}: libfuse cannot mount here: fusermount3: ")
    assert done.stderr.rstrip().endswith("Operation not permitted")


def test_devices_that_may_not_be_opened(tmp_path: Path) -> None:
    mount = f"{AS_NOBODY} {' '.join(MSHAREFS)} mount {tmp_path}"
    with unprivileged_userfaultfd(0):
        done = in_bare_dev(f"""set +e
            mknod -m 600 /dev/fuse c 10 229; mknod -m 660 /dev/userfaultfd c 10 257
            chgrp 12345 /dev/userfaultfd
            {mount}; echo $?; chmod 666 /dev/fuse; {mount}; echo $?""")
    assert done.stdout == "1\n1\n", done.stderr
    fuse, userfaultfd = done.stderr.splitlines()
    assert fuse == (
        "msharefs: /dev/fuse: cannot be opened (Permission denied): mode 0600 of user 0 and group "
        f"root keeps user {NOBODY} out: mount as root, or let users open it (chmod 666 /dev/fuse; "
        'to stay, a udev rule KERNEL=="fuse", MODE="0666")'
    )
    assert "mode 0660 of user 0 and group 12345 keeps" in userfaultfd
    assert "join the group 12345, or let users open it (chmod 666 /dev/userfaultfd;" in userfaultfd
    assert "sysctl vm.unprivileged_userfaultfd=1" in userfaultfd


def test_devices_that_are_something_else(tmp_path: Path) -> None:
    """A regular file, as left by a container's bind mount of a missing device; another device."""
    mount = f"{' '.join(MSHAREFS)} mount {tmp_path}"
    done = in_bare_dev(f"""set +e
        touch /dev/fuse; {mount}; echo $?
        rm /dev/fuse; mknod /dev/fuse c 1 3; {mount}; echo $?
        rm /dev/fuse; mknod /dev/fuse c 10 229; touch /dev/userfaultfd; {mount}; echo $?""")
    assert done.stdout == "1\n1\n1\n", done.stderr
    file, null, userfaultfd = done.stderr.splitlines()
    assert file == null
    assert file.startswith("msharefs: /dev/fuse: is no FUSE device (character device 10:229): ")
    assert userfaultfd.startswith("msharefs: /dev/userfaultfd: is no userfaultfd device: ")


def test_no_fusermount3_for_a_user(tmp_path: Path) -> None:
    done = in_bare_dev(f"""set +e
        mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257
        mkdir /dev/bin; ln -s $(command -v setpriv) /dev/bin
        PATH=/dev/bin {AS_NOBODY} {" ".join(MSHAREFS)} mount {tmp_path}; echo $?""")
    assert done.stdout == "1\n", done.stderr
    assert done.stderr.startswith("msharefs: fusermount3: is missing, and mounts for users")


def test_allow_other_needs_leave(tmp_path: Path) -> None:
    """A user who asks to let others in hears why not; root's mounts are open to others anyway."""
    mount = f"{' '.join(MSHAREFS)} mount -o allow_other"
    done = in_bare_dev(f"""set +e
        mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257
        touch /dev/shm/conf; mount --bind /dev/shm/conf /etc/fuse.conf
        {AS_NOBODY} {mount} {tmp_path}; echo $?
        {mount} {tmp_path}; echo $?; {" ".join(MSHAREFS)} umount {tmp_path}""")
    assert done.stdout == "1\n0\n", done.stderr
    assert done.stderr == (
        f"msharefs: {tmp_path}: -o allow_other: only root may let others in, unless /etc/fuse.conf "
        "has a line user_allow_other; add that, or mount without\n"
    )


@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs the package fuse3")
def test_a_server_that_is_not_root(public_tmp: Path) -> None:
    """A user mounts for themselves; FUSE keeps others out, even root."""
    (public_tmp / "mnt").mkdir()
    os.chown(public_tmp / "mnt", NOBODY, -1)
    msharefs = f"{AS_NOBODY} {' '.join(MSHAREFS)}"
    mnt = "/mnt/m"
    done = in_bare_dev(f"""
        mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257
        mount -t tmpfs -o mode=1777 tmpfs /mnt; mkdir {mnt}; chown {NOBODY} {mnt}
        cd /
        {msharefs} mount {mnt}
        {AS_NOBODY} sh -c "touch {mnt}/r; truncate -s 512G {mnt}/r; stat -c '%n %s %u' {mnt}/*"
        stat {mnt} 2>&1 | grep -o "Permission denied" || true
        {msharefs} umount {mnt}
        ls /dev/shm
        ! grep -q {mnt} /proc/self/mountinfo""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{mnt}/mshare_info 0 {NOBODY}",
        f"{mnt}/r 549755813888 {NOBODY}",
        "Permission denied",
    ]


# As the user of the mount: a region that its maker may size, but not open again for that.
SIZED_ONCE = """
import os
fd = os.open("/mnt/m/mine", os.O_RDWR | os.O_CREAT, 0o400)
os.ftruncate(fd, 512 << 30)
status = os.stat("/mnt/m/mine")
print(status.st_size >> 30, oct(status.st_mode), flush=True)
os.remove("/mnt/m/mine")
"""


@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs the package fuse3")
def test_others_on_the_mount_of_a_user(tmp_path: Path) -> None:
    """Its server cannot give files away: creation by others is refused, and leaves nothing."""
    script = tmp_path / "sized.py"
    script.write_text(SIZED_ONCE)
    msharefs = f"{AS_NOBODY} {' '.join(MSHAREFS)}"
    mnt = "/mnt/m"
    make_node = f"{sys.executable} -c 'import os; os.mknod(\"{mnt}/n\")'"
    left = "ls -A /mnt/m /dev/shm/m*/regions; ls /proc/$(head -1 /dev/shm/m*/lock)/fd | wc -l"
    done = in_bare_dev(f"""set +e
        mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257
        echo user_allow_other >{tmp_path}/conf; mount --bind {tmp_path}/conf /etc/fuse.conf
        mount -t tmpfs -o mode=1777 tmpfs /mnt; mkdir {mnt}; chown {NOBODY} {mnt}
        cd /
        {msharefs} mount -o allow_other {mnt}
        chmod 777 {mnt}
        ({left}) >/mnt/before
        (touch {mnt}/r; mkdir {mnt}/d; {make_node}) 2>&1 | grep -o "Operation not permitted"
        setpriv --reuid 1 --regid 1 --clear-groups mkdir {mnt}/d 2>&1 |
            grep -o "Operation not permitted"
        ({left}) >/mnt/after
        diff /mnt/before /mnt/after
        {AS_NOBODY} {sys.executable} {script}
        {msharefs} umount {mnt}""")
    assert (done.stdout, done.stderr, done.returncode) == (
        4 * "Operation not permitted\n" + "512 0o100400\n", "", 0
    )  # fmt: skip


# Attaches, has the kernel touch memory that nobody has filled, forks, and both go on.
WITHOUT_THE_DEVICE = """
import os, msharefs
with msharefs.open("/mnt/m/r") as region:
    region.map(0, 1 << 20)
    view = region.attach()
    with open("/dev/zero", "rb", buffering=0) as file:
        assert file.readinto(view[4096:8192]) == 4096
    view[0] = 7
    if os.fork() == 0:
        view[1 << 16] = view[0] + 1
        os._exit(0)
    os.wait()
    print(view[1 << 16], flush=True)
    os._exit(0)
"""


@pytest.mark.alone
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs the package fuse3")
def test_the_system_call_instead_of_the_device(tmp_path: Path) -> None:
    """vm.unprivileged_userfaultfd=1: neither the server nor its clients need the device."""
    script = tmp_path / "client.py"
    script.write_text(WITHOUT_THE_DEVICE)
    msharefs = f"{AS_NOBODY} {' '.join(MSHAREFS)}"
    mnt = "/mnt/m"
    with unprivileged_userfaultfd(1):
        done = in_bare_dev(f"""
            mknod -m 666 /dev/fuse c 10 229; mknod -m 600 /dev/userfaultfd c 10 257
            mknod -m 666 /dev/zero c 1 5
            mount -t tmpfs -o mode=1777 tmpfs /mnt; mkdir {mnt}; chown {NOBODY} {mnt}
            cd /
            {msharefs} mount {mnt}
            {AS_NOBODY} sh -c "touch {mnt}/r; truncate -s 512G {mnt}/r"
            {AS_NOBODY} {sys.executable} -P {script}
            echo 0 >{SYSCTL}
            ! {AS_NOBODY} {sys.executable} -P {script}
            {msharefs} umount {mnt}""")
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
    # Who has none yet gets none any more, once it is taken back.
    assert "attaching anywhere: this process may make no userfaultfd: its server" in done.stderr
