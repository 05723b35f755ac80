"""`msharefs run` without a name: a program's memory does not go to any user who made a mount."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from support.baredev import in_bare_dev
from support.calls import NOBODY

if TYPE_CHECKING:
    from pathlib import Path

MSHAREFS = f"{sys.executable} -P -m msharefs"
# Another user, who must be able to read the tests' Python: that may lie in root's home.
AS_NOBODY = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)
RUN = "run --adopt-anon 64M -- sh -c 'echo $MSHAREFS_MOUNT'"

pytestmark = pytest.mark.skipif(
    shutil.which("fusermount3") is None, reason="needs the package fuse3"
)


def beside_a_strangers_mount(tmp_path: Path, script: str) -> tuple[list[str], str]:
    """The output and the errors of a script that runs as root; /mnt/m is user 65534's."""
    done = in_bare_dev(f"""
        mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257
        echo user_allow_other >{tmp_path}/conf; mount --bind {tmp_path}/conf /etc/fuse.conf
        mount -t tmpfs -o mode=1777 tmpfs /mnt; mkdir /mnt/m /mnt/roots; chown {NOBODY} /mnt/m
        unset MSHAREFS_MOUNT; cd /
        {AS_NOBODY} {MSHAREFS} mount -o allow_other /mnt/m; chmod 777 /mnt/m
        {script}
        {MSHAREFS} umount /mnt/m""")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_it_is_not_taken_unasked(tmp_path: Path) -> None:
    used, said = beside_a_strangers_mount(tmp_path, f"{MSHAREFS} {RUN}")
    assert [name.startswith("/dev/shm/msharefs-private-") for name in used] == [True]  # noqa: S108
    assert f"on a private mount: the only ones there are belong to user {NOBODY}, who" in said


def test_it_is_used_by_name_and_by_its_own_user(tmp_path: Path) -> None:
    named = "run --mount /mnt/m -- sh -c 'echo $MSHAREFS_MOUNT'"
    used, _ = beside_a_strangers_mount(
        tmp_path,
        f"{MSHAREFS} {named.replace('--adopt-anon 64M', '')}; {AS_NOBODY} {MSHAREFS} {RUN}",
    )
    assert used == ["/mnt/m", "/mnt/m"]


def test_roots_is_the_only_one_beside_it_for_both(tmp_path: Path) -> None:
    used, said = beside_a_strangers_mount(
        tmp_path,
        f"{MSHAREFS} mount /mnt/roots; {MSHAREFS} {RUN}; {AS_NOBODY} {MSHAREFS} {RUN} || echo $?; "
        f"{MSHAREFS} umount /mnt/roots",
    )
    assert used == ["/mnt/roots", "2"]
    assert "several mounts (/mnt/m, /mnt/roots)" in said
