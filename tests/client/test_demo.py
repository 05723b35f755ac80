"""The demonstration as people run it: measured figures, and nothing left behind when it ends."""

from __future__ import annotations

import copy
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from msharefs import installed
from msharefs.cli import demo as verb
from msharefs.lab import demo
from msharefs.launch.private_mount import PrivateMount

from support import namespace, schema

PAGE = 4096
WAIT_MS = 30_000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", "demo", *arguments],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def check(found: dict[str, Any], processes: int, size: int) -> None:
    """The figures that every run must show, whatever its size."""
    pages, others = size // PAGE, processes - 1
    plain, shared, emulator = found["plain"], found["mshare"], found["mshare"]["emulator"]
    assert (found["processes"], found["size_bytes"]) == (processes, size)
    assert found["problems"] == []
    # Page tables: one PTE page for 512 pages and one page for each level above, once for all.
    frames = {"pgd": 1, "pud": 1, "pmd": 1, "pte": -(-pages // 512)}
    assert shared["table_frames"] == frames
    assert shared["page_table_bytes"] == sum(frames.values()) * PAGE
    assert shared["page_table_bytes_verifiers"] == 0
    # Without sharing: the PTE pages again in each process; one may be there, for a neighbour.
    assert plain["vmpte_growth_bytes"] >= processes * (frames["pte"] - 1) * PAGE
    # Faults: one for each page for the first process, one link for each of the others.
    assert shared["counters"]["faults"] == pages
    assert shared["links"] == processes
    assert shared["faults"] == pages + processes
    assert shared["faults_verifiers"] == others
    assert plain["faults"] >= pages
    assert shared["rss_bytes"] == size
    for side in (plain, emulator):
        assert side["verified_pages"] == others * pages
        assert side["wrong_pages"] == 0
    ratio = plain["vmpte_growth_bytes"] / shared["page_table_bytes"]
    assert found["ratio"]["page_tables"] == pytest.approx(ratio)


def test_a_small_run(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    result = run("--processes", "4", "--size", "8M", "-o", str(output))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(output.read_text())
    check(found, 4, 8 << 20)
    lines = [line.split("  ") for line in result.stdout.splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["page tables"][1] == "28 KiB"
    assert cells["faults"][:2] == [f"{found['plain']['faults']:,}", "2,052"]


@pytest.mark.slow
def test_the_run_that_readme_shows() -> None:
    result = run("--processes", "32", "--size", "256M", "--json")
    assert result.returncode == 0, result.stderr
    found = schema.check(json.loads(result.stdout))  # nothing but the document is printed
    check(found, 32, 256 << 20)
    assert found["mshare"]["page_table_bytes"] <= 540_000
    assert found["ratio"]["page_tables"] > 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "5000"], "multiple of 4096"),
        (["--size", "0"], "above zero"),
        (["--size", "1Q"], "is not a size"),
        (["--size", "1000T"], "give a smaller --size"),
        (["--processes", "1"], "--processes"),
        (["--json", "found.json"], "found.json"),
        (["-o", "-"], "--json"),
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert said in result.stderr


def test_more_than_dev_shm_holds_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb.home, "may_mount", lambda: False)
    monkeypatch.setattr(verb.home, "room", lambda _: 1 << 20)
    result = CliRunner().invoke(verb.command, ["--size", "2M"])
    assert result.exit_code == 2
    assert f"free in {namespace.SHM}" in result.output


def test_problems_are_said_and_make_it_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    found = schema.check(json.loads(run("--processes", "2", "--size", "1M", "--json").stdout))
    sentence = "process 7 found 1 of 256 pages wrong, the first is page 3"
    monkeypatch.setattr(demo, "run", lambda *_: {**found, "problems": [sentence]})
    monkeypatch.setattr(verb._progress, "end_on_signals", lambda: None)
    result = CliRunner().invoke(verb.command, ["--processes", "2", "--size", "1M"])
    assert result.exit_code == 1
    assert sentence in result.output


class Three:
    """Stands for three workers."""

    pids = (101, 102, 103)

    def __len__(self) -> int:
        return len(self.pids)


STAT: dict[str, Any] = {"size_bytes": 1 << 39, "quantum_bytes": 1 << 39, "counters": {"links": 3}}
CLIENTS = [{"pid": pid, "faults": 9 if pid == 101 else 0} for pid in Three.pids]
AUDIT = {"lost": 0, "stray": 0, "bad": 0}


def unshared(stat: Any = STAT, clients: Any = CLIENTS, audit: Any = AUDIT) -> list[str]:
    return demo._unshared(stat, clients, audit, Three())  # type: ignore[arg-type]


def test_sharing_as_it_must_be_is_no_problem() -> None:
    assert unshared() == []


@pytest.mark.parametrize("links", [2, 4])
def test_one_link_a_process_is_right(links: int) -> None:
    (problem,) = unshared({**STAT, "counters": {"links": links}})
    assert problem.startswith(f"{links} links in all, for 3 processes")


def test_a_process_that_fills_again_did_not_share() -> None:
    clients = copy.deepcopy(CLIENTS)
    clients[2]["faults"] = 5
    (problem,) = unshared(clients=clients)
    assert problem.startswith("process 103 filled 5 entries")


def test_a_client_too_few_is_a_problem() -> None:
    (problem,) = unshared(clients=CLIENTS[:2])
    assert "2 clients, not the 3" in problem


@pytest.mark.parametrize("what", list(AUDIT))
def test_what_the_audit_finds_is_a_problem(what: str) -> None:
    (problem,) = unshared(audit={**AUDIT, what: 6})
    assert what in problem
    assert "6" in problem


def wait_for_mount(pid: int) -> Path:
    """The directory of the private mount of a running demonstration, as soon as it is there."""
    pidfd = os.pidfd_open(pid)
    with Path("/proc/self/mountinfo").open("rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        poll.register(pidfd, select.POLLIN)
        try:
            while True:
                for mount in namespace.mounts():
                    if mount.fstype == "fuse.msharefs":
                        return Path(mount.path)
                events = poll.poll(WAIT_MS)
                assert events, "no mount"
                assert pidfd not in [fd for fd, _ in events], "the demonstration has ended"
        finally:
            os.close(pidfd)


def start() -> subprocess.Popen[bytes]:
    """A demonstration that runs for a while, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "msharefs", "demo", "--processes", "8", "--size", "128M"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_and_nothing_is_left(number: signal.Signals, status: int) -> None:
    with start() as process:
        wait_for_mount(process.pid)
        process.send_signal(number)
        assert process.wait(timeout=30) == status
    # The fixture nothing_left looks for processes, mounts and files.


def test_a_ctrl_c_ends_it_and_its_workers() -> None:
    with start() as process:
        wait_for_mount(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_killed_one_leaves_no_mount_and_no_memory() -> None:
    with start() as process:
        directory = wait_for_mount(process.pid)
        process.kill()
    with Path("/proc/self/mountinfo").open("rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        while namespace.at(directory):
            assert poll.poll(WAIT_MS), "still mounted"
    wait_for_the_end_of_its(directory)
    base = directory.parent
    assert not (base / "state").exists()
    shutil.rmtree(base)  # the empty directory and the log are left


def wait_for_the_end_of_its(directory: Path) -> None:
    """Wait for the server and the workers: each has the name of the directory somewhere."""
    marker = os.fsencode(directory)
    worker = os.fsencode(installed.worker())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pidfd = os.pidfd_open(int(process.name))
        except OSError:
            continue
        try:
            words = (process / "cmdline").read_bytes()
            if marker in words or worker in words:
                assert select.select([pidfd], [], [], WAIT_MS / 1000)[0], words
        except OSError:
            continue
        finally:
            os.close(pidfd)


def test_a_private_mount_is_there_and_goes_with_its_server() -> None:
    with PrivateMount("quantum=2M") as mount:
        assert (mount.directory / "mshare_info").read_text().strip() == str(2 << 20)
        assert mount.host_mm_bytes() == 0
    assert not mount.directory.exists()


def test_the_mounts_sentence_comes_through() -> None:
    with pytest.raises(OSError, match="quantum=3M: must be one of"), PrivateMount("quantum=3M"):
        pass


def test_a_server_that_dies_is_said() -> None:
    def use_it_dead() -> None:
        with PrivateMount() as mount:
            assert mount._server is not None
            mount._server.kill()
            mount._server.wait()
            (mount.directory / "r").touch()

    with pytest.raises(OSError, match="server died"):
        use_it_dead()
