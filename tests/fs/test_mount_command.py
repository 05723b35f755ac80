"""`msharefs mount` and `msharefs umount`: either it works, or one sentence says why not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import msharefs
from msharefs import mountpoint, proc
from msharefs.cli import umount
from msharefs.home import default_state

from support import namespace
from support.calls import AS_NOBODY, NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


MSHAREFS = [sys.executable, "-P", "-m", "msharefs"]
LIMIT = 30.0


def run(*arguments: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MSHAREFS, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
        **more,
    )


def succeeds(*arguments: str | Path, **more: object) -> None:
    done = run(*arguments, **more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def fails(*arguments: str | Path, status: int = 1, **more: object) -> str:
    """Its one sentence, but for those that say whom it waits for."""
    done = run(*arguments, **more)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("msharefs: ")
        said = [line for line in done.stderr.splitlines() if ": waiting for " not in line]
        assert len(said) == 1
        return said[0] + "\n"
    return done.stderr


@pytest.fixture
def directory(public_tmp: Path) -> Iterator[Path]:
    """An empty mount point; whatever is mounted on it is ended afterwards."""
    with namespace.mount_point(public_tmp) as directory:
        yield directory


@pytest.fixture
def state(public_tmp: Path) -> Path:
    return public_tmp / "state"


def server_of(directory: Path) -> psutil.Process:
    server = mountpoint.open_server(directory)
    os.close(server.pidfd)
    return psutil.Process(server.pid)


# What does work


def test_mount_detaches_when_it_works(directory: Path) -> None:
    succeeds("mount", directory)
    assert (directory / "mshare_info").read_text() == "549755813888\n"  # at once, no waiting
    server = server_of(directory)
    assert os.getsid(server.pid) not in (os.getsid(0), server.pid)
    assert server.cwd() == "/"
    assert os.readlink(f"/proc/{server.pid}/fd/0") == os.devnull
    state = default_state(directory)
    assert state.stat().st_mode & 0o777 == 0o711
    assert "mounted on" in (state / "log").read_text()
    assert (state / "log").stat().st_mode & 0o077 == 0
    succeeds("umount", directory)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert not state.exists()
    assert os.listdir(directory) == []


@pytest.mark.parametrize("write", [str, lambda path: f"{path}/", lambda path: f"{path}/../mnt/."])
def test_ways_to_write_a_directory(directory: Path, write: Callable[[Path], str]) -> None:
    succeeds("mount", write(directory))
    succeeds("umount", write(directory))


def test_relative_and_through_links(directory: Path, public_tmp: Path) -> None:
    (public_tmp / "link").symlink_to(directory)
    (public_tmp / "parent").symlink_to(public_tmp)
    succeeds("mount", "mnt", cwd=public_tmp)
    assert "mounted here already" in fails("mount", public_tmp / "link")
    succeeds("umount", public_tmp / "parent" / "mnt")
    succeeds("mount", public_tmp / "link")
    assert (directory / "mshare_info").exists()
    succeeds("umount", "link", cwd=public_tmp)


@pytest.mark.parametrize("name", ["a b", "tab\there", "new\nline", "back\\slash", "ünï#code", "-f"])
def test_odd_names(public_tmp: Path, name: str) -> None:
    directory = public_tmp / name
    directory.mkdir()
    succeeds("mount", "--", name, cwd=public_tmp)
    try:
        assert (directory / "mshare_info").exists()
    finally:
        succeeds("umount", "--", name, cwd=public_tmp)


def test_options(directory: Path, state: Path) -> None:
    succeeds("mount", "-o", f"quantum=1G,state={state}", "-o", "owner=file,quantum=2M", directory)
    assert (directory / "mshare_info").read_text() == "2097152\n"
    assert (state / "control").is_socket()
    assert not default_state(directory).exists()
    succeeds("umount", directory)
    assert not state.exists()  # it was made for this mount


def test_a_state_directory_that_was_there_stays_empty(directory: Path, state: Path) -> None:
    state.mkdir(mode=0o700)
    succeeds("mount", "-o", f"state={state}", directory)
    succeeds("umount", directory)
    assert os.listdir(state) == []


def test_two_mounts(directory: Path, public_tmp: Path) -> None:
    other = public_tmp / "other"
    other.mkdir()
    succeeds("mount", directory)
    succeeds("mount", other)
    (directory / "r").touch()
    assert not (other / "r").exists()
    succeeds("umount", directory)
    (other / "r").touch()
    succeeds("umount", other)


def test_ordinary_umount_ends_the_server(directory: Path) -> None:
    succeeds("mount", directory)
    server = server_of(directory)
    pidfd = os.pidfd_open(server.pid)
    try:
        subprocess.run(["umount", directory], check=True)
        assert mountpoint.wait_for_end(pidfd, LIMIT)
    finally:
        os.close(pidfd)
    assert not default_state(directory).exists()


def test_the_terminal_may_go(directory: Path) -> None:
    """The mounting shell's session ends, its terminal hangs up: the server stays."""
    subprocess.run(["setsid", "--wait", *MSHAREFS, "mount", str(directory)], check=True)
    server = server_of(directory)
    assert server.terminal() is None
    succeeds("umount", directory)


def test_foreground_logs_to_stderr(directory: Path) -> None:
    process = subprocess.Popen(
        [*MSHAREFS, "mount", "-f", "--debug", str(directory)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "mounted on" in line:
                break
        with contextlib.suppress(FileNotFoundError):
            (directory / "nothing").stat()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert "lookup" in rest
    assert "unmounted from" in rest
    assert namespace.at(directory) is None


def test_a_mount_that_is_read_only(directory: Path, state: Path) -> None:
    """Of files that an earlier mount has left; the kernel refuses every change."""
    succeeds("mount", "-o", f"state={state}", directory)
    with (directory / "r").open("w") as file:
        file.truncate(512 << 30)
    server_of(directory).kill()
    succeeds("mount", "-o", f"ro,noexec,nosuid,nodev,noatime,state={state}", directory)
    options = next(
        line.split()[5].split(",")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(directory)
    )
    assert {"ro", "noexec", "nosuid", "nodev", "noatime"} <= set(options)
    assert (directory / "r").stat().st_size == 512 << 30
    for change in (
        (directory / "s").touch,
        (directory / "r").unlink,
        lambda: (directory / "r").open("r+"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    succeeds("umount", directory)


def test_options_of_fstab(directory: Path) -> None:
    succeeds("mount", "-o", "defaults,_netdev,nofail,noauto,x-systemd.requires=a", directory)
    (directory / "r").touch()
    succeeds("umount", directory)


# What does not work


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("quantum=4K", "512G, 1G, 2M"),
        ("quantum=", "512G, 1G, 2M"),
        ("quantum", "512G, 1G, 2M"),
        ("owner=me", "file, creator, process, thread"),
        ("quirks=v2", "v3"),
        ("state=", "tmpfs"),
        ("sizes=1G", "there is no such option"),
        ("ro,bind", "-o bind: there is no such option"),
        ("ro=yes", "takes no value"),
    ],
)
def test_wrong_options_are_usage(directory: Path, options: str, words: str) -> None:
    assert words in fails("mount", "-o", options, directory, status=2)
    assert namespace.at(directory) is None


def test_wrong_arguments_are_usage(directory: Path) -> None:
    fails("mount", status=2)
    fails("umount", status=2)
    fails("mount", directory, directory, status=2)


def test_no_directory(public_tmp: Path) -> None:
    assert "mkdir" in fails("mount", public_tmp / "no")
    assert "mkdir" in fails("mount", public_tmp / "no" / "deeper")
    (public_tmp / "file").touch()
    assert "not a directory" in fails("mount", public_tmp / "file")
    fails("umount", public_tmp / "no")
    assert sorted(os.listdir(public_tmp)) == ["file"]


def test_mounted_already(directory: Path, state: Path) -> None:
    succeeds("mount", directory)
    (directory / "r").touch()
    said = fails("mount", "-o", f"state={state}", directory)
    assert f"msharefs umount {directory}" in said
    assert (directory / "r").exists()
    assert not state.exists()
    succeeds("umount", directory)


def test_state_in_use(directory: Path, state: Path, public_tmp: Path) -> None:
    other = public_tmp / "other"
    other.mkdir()
    succeeds("mount", "-o", f"state={state}", directory)
    (directory / "r").touch()
    said = fails("mount", "-o", f"state={state}", other)
    assert f"mounted on {directory}" in said
    assert namespace.at(other) is None
    assert (directory / "r").exists()
    succeeds("umount", directory)


def test_state_not_on_tmpfs(directory: Path, tmp_path: Path) -> None:
    assert "must be on tmpfs" in fails("mount", "-o", f"state={tmp_path / 'state'}", directory)
    assert os.listdir(tmp_path) == []


def test_state_of_somebody_else(directory: Path, state: Path) -> None:
    state.mkdir()
    os.chown(state, NOBODY, -1)
    assert "must belong to" in fails("mount", "-o", f"state={state}", directory)
    os.chown(state, 0, -1)
    state.chmod(0o777)
    assert "nobody else may write" in fails("mount", "-o", f"state={state}", directory)
    assert os.listdir(state) == []


def test_state_with_other_files(directory: Path, state: Path) -> None:
    state.mkdir()
    (state / "letter").write_text("dear")
    assert "letter is in it" in fails("mount", "-o", f"state={state}", directory)
    assert (state / "letter").read_text() == "dear"
    assert os.listdir(state) == ["letter"]


def test_state_that_is_no_directory(directory: Path, state: Path, public_tmp: Path) -> None:
    state.touch()
    assert "remove it" in fails("mount", "-o", f"state={state}", directory)
    assert "parent is missing" in fails("mount", "-o", f"state={public_tmp}/a/b", directory)
    assert "inside the mount point" in fails(
        "mount", "-o", f"state={directory}/state", directory, status=2
    )
    long = public_tmp / ("x" * 120)
    assert "too long" in fails("mount", "-o", f"state={long}", directory)
    assert not long.exists()


def test_umount_of_what_is_not_ours(directory: Path, public_tmp: Path) -> None:
    assert "no msharefs is mounted here" in fails("umount", directory)
    assert "no msharefs is mounted here" in fails("umount", public_tmp)
    assert "no msharefs is mounted here" in fails("umount", "/dev/shm")  # noqa: S108


def test_umount_in_use(directory: Path) -> None:
    succeeds("mount", directory)
    with (directory / "r").open("w"):
        assert f"in use by {os.getpid()} (" in fails("umount", directory)
    (directory / "d").mkdir()
    sleeper = subprocess.Popen(["sleep", "60"], cwd=directory / "d")
    try:
        assert f"in use by {sleeper.pid} (sleep), with" in fails("umount", directory)
        assert (directory / "r").exists()
        server = server_of(directory)
        succeeds("umount", "--lazy", directory)
        assert os.listdir(directory) == []
        assert server.is_running()  # for the processes that still use it
    finally:
        sleeper.kill()
        sleeper.wait()
    psutil.wait_procs([server], timeout=LIMIT)
    assert not default_state(directory).exists()


@pytest.mark.parametrize("way", ["attached", "adopted"])
def test_umount_while_attached_names_the_processes(directory: Path, way: str) -> None:
    """Also those whose region has no name any more: adopted memory."""
    succeeds("mount", "-o", "quantum=2M", directory)
    attach = f"""
import msharefs, os, sys
region = msharefs.open({str(directory / "r")!r}, os.O_RDWR | os.O_CREAT)
region.truncate(2 << 20)
view = region.attach()
os.close(region.fd)
print("there", flush=True)
sys.stdin.read()
os._exit(0)
"""
    adopt = 'import mmap, sys; m = mmap.mmap(-1, 4 << 20); print("there", flush=True); input()'
    command = {
        "attached": [sys.executable, "-c", attach],
        "adopted": [*MSHAREFS, "run", "--mount", str(directory), "--adopt-anon", "2M", "--",
                    sys.executable, "-c", adopt],
    }[way]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        said = fails("umount", directory)
        assert f"in use: attached to its regions are {process.pid} (python" in said
        assert process.stdin is not None
        process.stdin.write("\n")
    succeeds("umount", directory)


def test_umount_while_the_last_one_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was counted, and has ended before it could be named."""
    succeeds("mount", "-o", "quantum=2M", directory)
    region = msharefs.open(directory / "r", os.O_RDWR | os.O_CREAT)
    region.truncate(2 << 20)
    view = region.attach()
    asked = mountpoint.attached_processes

    def after_its_end(where: Path) -> list[int]:
        view.release()
        region.close()
        return asked(where)

    monkeypatch.setattr(mountpoint, "attached_processes", after_its_end)
    umount.unmount(directory, lazy=False)


def test_umount_by_another_user(directory: Path) -> None:
    succeeds("mount", directory)
    command = [*AS_NOBODY.split(), *MSHAREFS, "umount", str(directory)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "only root and user 0, who mounted it, may unmount it" in done.stderr
    assert (directory / "mshare_info").exists()
    succeeds("umount", directory)


def test_a_stale_mount_is_replaced(directory: Path, state: Path) -> None:
    succeeds("mount", "-o", f"state={state}", directory)
    (directory / "r").touch()
    server = server_of(directory)
    server.kill()
    psutil.wait_procs([server], timeout=LIMIT)
    succeeds("mount", "-o", f"state={state}", directory)
    assert (directory / "r").exists()  # the new server has taken over
    assert len([mount for mount in proc.mounts() if mount.directory == directory]) == 1
    succeeds("umount", directory)


def test_umount_of_a_stale_mount(directory: Path, state: Path) -> None:
    succeeds("mount", "-o", f"state={state}", directory)
    server = server_of(directory)
    server.kill()
    psutil.wait_procs([server], timeout=LIMIT)
    succeeds("umount", directory)
    assert namespace.at(directory) is None


@pytest.mark.slow
def test_a_server_that_is_stopped(directory: Path) -> None:
    succeeds("mount", directory)
    server = server_of(directory)
    server.suspend()
    begin = time.monotonic()
    try:
        assert "does not answer" in fails("mount", directory)
        assert time.monotonic() - begin < 20
    finally:
        server.resume()
    succeeds("umount", directory)


def test_a_dead_mount_of_another_kind(directory: Path) -> None:
    """We must not unmount it."""
    script = (
        "import os, sys, pyfuse3; pyfuse3.init(pyfuse3.Operations(), sys.argv[1],"
        " {'fsname=x', 'subtype=other'}); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, directory], check=True)
    said = fails("mount", directory)
    assert "fuse.other" in said
    assert f"umount {directory}" in said
    assert namespace.at(directory) is not None


def test_a_libfuse_that_does_not_load(directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.touch()
    library = tmp_path / "libfuse3.so.3"
    subprocess.run(["cc", "-shared", "-o", library, source], check=True)
    said = fails("mount", directory, env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert "libfuse 3.14 or later does not load" in said
    assert "libfuse3-3" in said


def test_a_socket_in_the_way_is_replaced(directory: Path, state: Path) -> None:
    """The control socket that a crashed server left."""
    state.mkdir(mode=0o711)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(state / "control"))
    succeeds("mount", "-o", f"state={state}", directory)
    succeeds("umount", directory)


# Its server, once started, says nothing until the end of the standard input.
SILENT = """
import os
from pathlib import Path
from msharefs.server import server
from msharefs.server.options import MountOptions

server._START_SECONDS = 0.1
server._serve_detached = lambda options, sender: (os.read(0, 1), os._exit(0))
try:
    server._detach(MountOptions(directory=Path("/d"), state=Path("/s")))
except TimeoutError as error:
    print(error.filename, error.strerror, flush=True)
"""


def test_a_server_that_says_nothing() -> None:
    """Nobody waits for it without an end, and one is told where to look."""
    command = [sys.executable, "-c", SILENT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout
        said = starter.stdout.readline()
        starter.communicate(timeout=LIMIT)
    assert said.startswith("/d the server has not said for 0.1 s whether the mount works")
    assert "its log is /s/log" in said
