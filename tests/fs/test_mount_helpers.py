"""mount(8), umount(8) and fstab(5) on msharefs, by their helpers; and a service of systemd's."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs import mountpoint

from support import namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.smoke
LIMIT = 60.0
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def directory(public_tmp: Path) -> Iterator[Path]:
    with namespace.mount_point(public_tmp) as directory:
        yield directory


@pytest.fixture
def system(public_tmp: Path) -> Iterator[Path]:
    """mount(8) looks for helpers in /sbin alone: what it finds there is ours, in this namespace."""
    sbin = public_tmp / "sbin"
    sbin.mkdir()
    for verb in ("mount", "umount"):
        for kind in ("msharefs", "fuse.msharefs"):
            (sbin / f"{verb}.{kind}").symlink_to(SCRIPTS / f"{verb}.msharefs")
    real = os.path.realpath("/sbin")
    subprocess.run(["mount", "--bind", sbin, real], check=True)
    yield public_tmp
    namespace.detach(Path(real))


ENVIRON = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=ENVIRON, check=False, capture_output=True, text=True,
        timeout=LIMIT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def works(*command: str | Path) -> None:
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, ""), shlex.join(map(str, command))


def shown(directory: Path) -> tuple[str, set[str]]:
    """Source and options of the mount, as findmnt(8) and /proc/mounts have them."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, where, kind, options, *_ = line.split()
        if where == str(directory):
            assert kind == "fuse.msharefs"
            return source, set(options.split(","))
    raise AssertionError(f"{directory} is not mounted")


def test_as_any_other_file_system(system: Path, directory: Path) -> None:
    """Mounted and remounted by mount(8), unmounted by the helper, which waits."""
    options = f"quantum=2M,state={system}/state,noatime,regions=5"
    works("mount", "-t", "msharefs", "none", directory, "-o", options)
    assert (directory / "mshare_info").read_text() == "2097152\n"
    source, flags = shown(directory)
    assert source == "none"
    assert {"rw", "noatime"} <= flags

    works("mount", "-o", "remount,ro,regions=7,memory=8M", directory)
    assert "ro" in shown(directory)[1]
    limits = mountpoint.limits(directory)
    assert (limits["regions"]["limit"], limits["memory"]["limit"]) == (7, 8 << 20)
    with pytest.raises(OSError, match="Read-only"):
        (directory / "r").touch()
    works("mount", "-o", "remount,rw,quantum=2M", directory)  # as it is
    (directory / "r").touch()

    refused = run("mount", "-o", "remount,regions=9,quantum=1G", directory)
    assert refused.returncode == 32
    assert "-o quantum: cannot change while it is mounted" in refused.stderr
    assert mountpoint.limits(directory)["regions"]["limit"] == 7, "all or nothing"

    server = mountpoint.open_server(directory)
    try:
        works("umount.msharefs", directory)
        assert mountpoint.wait_for_end(server.pidfd, 0), "its server has ended already"
    finally:
        os.close(server.pidfd)
    assert namespace.at(directory) is None


def test_fstab(system: Path, directory: Path) -> None:
    fstab = system / "fstab"
    fstab.write_text(
        f"any,name {directory} msharefs quantum=2M,state={system}/state,nofail,_netdev,users,owner,"
        "x-systemd.requires=network.target,X-mount.owner=0,comment=mine,iversion,nosymfollow 0 0\n"
    )
    works("mount", "-T", fstab, "--all")
    assert shown(directory)[0] == "any,name"
    works("mount", "-T", fstab, "--all")  # it is there already
    works("umount", directory)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-o", "colour=red"], 1, "-o colour=red: there is no such option"),
        (["-o", "quantum=4K"], 1, "-o quantum=4K: must be one of 512G, 1G, 2M"),
        (["-o", "remount,ro"], 32, "no msharefs is mounted here"),
        (["--nosuch"], 1, "No such option"),
        (["-f", "-v", "-r"], 0, "(not)"),
        (["-f", "-s", "-o", "colour=red,quantum=2M"], 0, "-o colour=red is left out"),
    ],
)
def test_answers_of_the_helper(
    directory: Path, arguments: list[str], status: int, said: str
) -> None:
    done = run(SCRIPTS / "mount.msharefs", "none", directory, *arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert namespace.at(directory) is None


def test_umount_of_what_is_not_mounted(directory: Path) -> None:
    done = run(SCRIPTS / "umount.msharefs", directory)
    assert (done.returncode, done.stdout) == (32, "")
    assert "no msharefs is mounted here" in done.stderr


def test_a_service_tells_systemd_when_it_is_ready(directory: Path, public_tmp: Path) -> None:
    """Type=notify: READY when the mount works, not before; STATUS; STOPPING. Levels in its log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(public_tmp / "notify"))
        manager.settimeout(LIMIT)
        reader, writer = socket.socketpair()
        found = os.fstat(writer.fileno())
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": str(public_tmp / "notify"),
            "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}",
        }
        verb = ["mount", "-f", "-o", f"quantum=2M,state={public_tmp}/state", str(directory)]
        with (
            reader,
            subprocess.Popen(
                [sys.executable, "-P", "-m", "msharefs", *verb], env=environ, stderr=writer
            ) as server,
        ):
            writer.close()
            try:
                told: list[str] = []
                while "READY=1" not in told:
                    told.append(manager.recv(4096).decode())
                assert (directory / "mshare_info").read_text() == "2097152\n"
                while "STATUS=0 regions, 0 attachments" not in told:
                    told.append(manager.recv(4096).decode())
                server.send_signal(signal.SIGTERM)
                while "STOPPING=1" not in told:
                    told.append(manager.recv(4096).decode())
                assert server.wait(LIMIT) == 0
            finally:
                server.kill()
            log = reader.makefile().read()
    assert "<6>msharefs.server.serving: mounted on" in log
