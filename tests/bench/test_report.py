"""Watching programs, and the report of a run."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from msharefs import client
from msharefs.lab import own, plan, ptmap, report, sampling
from msharefs.lab.workers import Workers
from msharefs.launch.private_mount import PREFIX, parent
from msharefs.server import describe
from msharefs.server.view import View

from support import schema
from support.actor import READ_WRITE
from support.memory import MAP_FIXED
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

SIZE = 16 << 20
PAGES = SIZE // 4096
CLIENTS = 4
BASE = 0x2000_0000_0000  # where nothing else is
SPAN = 2 << 20
LEAST_TABLES = 2 * 4096  # the PTE tables of the 4 MiB that FORKS shares
TABLES = (PAGES // 512 + 2) * 4096  # PTE, PMD and PUD tables


@contextmanager
def program(mount: Mount) -> Iterator[Workers]:
    """Processes that share an unlinked region, like adopted memory, and have read all of it."""
    path = mount.path / "r"
    with client.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region, Workers(CLIENTS) as four:
        region.truncate(512 << 30)
        region.map(0, SIZE)
        four.ask(f"attach {path}")
        path.unlink()
        four.ask(f"order 0 0 {PAGES} {PAGES} sequential")
        four.ask("touch 1 write", [0])
        four.ask("touch 1 read")
        yield four


@pytest.fixture
def seen(mount: Mount) -> sampling.Sampler:
    with program(mount) as workers:
        sampler = sampling.Sampler(lambda: workers.pids, mount.state, interval=0.01)
        with sampler:
            pass  # a first and a last look
    return sampler


def test_what_the_sampler_sees(seen: sampling.Sampler) -> None:
    assert seen.error is None
    assert len(seen.samples) >= 2
    found = json.loads(json.dumps(seen.document()))
    assert (found["processes"], found["clients"], found["attachments"]) == (CLIENTS,) * 3
    assert found["mapped_bytes"] == SIZE
    assert found["own_tables_bytes"] == CLIENTS * TABLES
    assert found["vmpte_bytes"] > found["own_tables_bytes"]
    assert found["page_table_bytes"] == TABLES + 4096  # the host mm's PGD
    assert found["ratio"] == CLIENTS * TABLES / (TABLES + 4096)
    assert found["links"] == CLIENTS
    (region,) = found["regions"]
    assert region["rss_bytes"] == SIZE
    assert sum(sum(part["present"]) for part in region["map"]["ranges"]) == PAGES


@pytest.mark.parametrize(
    ("quantum", "expected"),
    [
        (512 << 30, (TABLES, 0)),
        (1 << 30, (TABLES - 4096, 4096)),
        (2 << 20, (TABLES - 2 * 4096, 2 * 4096)),
    ],
)
def test_tables_above_the_quantum_stay_everybodys_own(
    mount: Mount, quantum: int, expected: tuple[int, int]
) -> None:
    with program(mount) as workers:
        base = next(iter(_bases(mount, workers.pids[1])))
        held = own.look(workers.pids[1], [(base, SIZE, 0)], quantum)
        assert held is not None
        assert (held.own, held.cells) == (expected, ((0, SIZE // ptmap.CELL_BYTES),))


def _bases(mount: Mount, pid: int) -> list[int]:
    (path,) = (mount.state / "regions").glob("*.mm")
    host = View("r", path.parent, int(path.stem))
    try:
        return [one["base"] for one in describe.clients(host) if one["pid"] == pid]
    finally:
        host.close()


def test_own_tables_are_what_goes_with_the_window(mount: Mount) -> None:
    with program(mount) as workers:
        before = [own.vmpte(pid) for pid in workers.pids]
        workers.ask("detach")
        after = [own.vmpte(pid) for pid in workers.pids]
    # The kernel's own account. The client's mapping of the host mm goes with the window, and has
    # some tables too: for header, slots, VMAs and frames, and those above them.
    for freed in (one - other for one, other in zip(before, after, strict=True)):
        assert TABLES <= freed <= TABLES + 8 * 4096


def test_a_process_that_is_gone_has_no_tables() -> None:
    gone = 1 << 22  # above pid_max
    assert own.vmpte(gone) == 0
    assert own.look(gone, [(0, SIZE, 0)], 512 << 30) == own.Held(own.Own(0, 0), ())


@pytest.mark.parametrize(("more", "steady"), [(1, True), (40, False)])
def test_a_moment_in_which_nothing_changed_is_told_if_there_is_one(
    actors: Callable[[], Actor], tmp_path: Path, more: int, steady: bool
) -> None:
    """In the second look the process gets page tables: a few, or too many to leave them out."""
    actor = actors()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    actor.number("plain-map", BASE, 64 * SPAN, READ_WRITE, flags, -1, 0)
    actor.number("check", BASE, 4096, 0, 0)
    asked: list[None] = []

    def processes() -> list[int]:
        asked.append(None)
        if len(asked) == 4:  # at the end of the second look
            for table in range(1, more + 1):
                actor.number("check", BASE + table * SPAN, 4096, 0, 0)
        return [actor.pid]

    sampler = sampling.Sampler(processes, tmp_path)
    sampler.look()
    sampler.look()
    first, second = sampler.samples
    assert (first.grew_bytes, second.grew_bytes) == (0, more * 4096)
    assert second.vmpte_bytes == first.vmpte_bytes + more * 4096
    assert sampler.moment is (first if steady else second)
    found = report.document(["x"], 0, 1.0, 0, sampler)
    assert found["moment_steady"] == steady
    changed = f"all page tables together changed by {more * 4} KiB" in report.text(found)
    assert changed != steady


def test_a_sampler_whose_work_fails_says_so_and_lets_the_program_go_on(mount: Mount) -> None:
    def fail() -> list[int]:
        raise ValueError("no processes today")

    with sampling.Sampler(fail, mount.state) as sampler:
        pass
    found = report.document(["x"], 0, 1.0, 0, sampler)
    assert "no processes today" in report.text(found)
    assert "attached no region" in report.text(found)


def test_the_report(seen: sampling.Sampler, tmp_path: Path) -> None:
    found = report.document(["server", "-x", "<a b>"], 3, 12.34, 567, seen)
    text = report.text(found)
    assert text.startswith("server -x '<a b>': 12.3 s, status 3\n")
    uname = os.uname()
    assert (found["host"], found["kernel"]) == (uname.nodename, uname.release)
    assert f", {uname.nodename}, Linux {uname.release}, msharefs " in text.splitlines()[1]
    assert re.search(r"^faults +567 ", text, re.MULTILINE)
    assert re.search(rf"^ratio +{found['ratio']:.3g}x ", text, re.MULTILINE)
    html, figures = report.write(found, tmp_path / "r.html")
    page = html.read_text()
    assert "&lt;a b&gt;" in page
    assert text.splitlines()[1] in page
    assert "<a b>" not in page
    assert page.count("<svg") == 2  # over time, and a map
    assert 'href="http' not in page  # it fetches nothing
    assert "<img" not in page
    assert json.loads(figures.read_text()) == found


def test_a_plan_from_it(seen: sampling.Sampler) -> None:
    found = report.document(["x"], 0, 1.0, 0, seen)
    measured = plan.measured(found)
    assert (measured.size, measured.clients) == (SIZE, CLIENTS)
    assert measured.touched.client == 1
    assert measured.touched.anybody == 1
    with pytest.raises(ValueError, match="no figures"):
        plan.measured({**found, "clients": 0})


FORKS = """
import mmap, os, sys
size = 4 << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at] = 1
ready, go = os.pipe(), os.pipe()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        os.close(go[1])
        sum(memory[at] for at in range(0, size, 4096))
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    children.append(child)
for _ in children:
    os.read(ready[0], 1)
print("shared", flush=True)
if sys.argv[1:] == ["wait"]:
    sys.stdin.readline()  # long enough to be seen
    os.close(go[1])
    for child in children:
        os.waitpid(child, 0)
    sys.exit(7)
"""


def private_mounts() -> list[str]:
    return [name for name in os.listdir(parent()) if name.startswith(PREFIX)]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "msharefs", "run", "--adopt-anon", "1M", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    """Let the program go on after a while; returns its stderr."""
    assert process.stdout
    assert process.stdout.readline() == "shared\n"
    time.sleep(seconds)
    return process.communicate("\n", timeout=60)[1]


def watch(figures: Path, *arguments: str | Path) -> str:
    """Run FORKS until the watcher has looked at all of it, which nobody outside can see."""
    for seconds in (0.3, 2, 10):
        process = start(*arguments, "--", sys.executable, "-c", FORKS, "wait")
        said = finish(process, seconds)
        assert process.returncode == 7
        if is_whole(json.loads(figures.read_text())):
            break
    return said


def is_whole(found: dict[str, Any]) -> bool:
    """Whether all four have been seen with all their tables."""
    return bool(found["clients"] == 4 and found["own_tables_bytes"] >= 4 * LEAST_TABLES)


def check(found: dict[str, Any], processes: int) -> None:
    pages = (4 << 20) // 4096
    assert found["processes"] == found["clients"] == processes
    assert found["mapped_bytes"] == 4 << 20
    assert found["region_faults"] + found["prefaulted"] == pages
    assert found["own_tables_bytes"] >= processes * LEAST_TABLES
    assert found["page_table_bytes"] >= 5 * 4096
    assert found["faults"] > 0
    assert found["incomplete"] is None


def test_run_with_a_report_on_a_mount_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    said = watch(path.with_suffix(".json"), "--report", path)
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["status"] == 7
    check(found, 4)
    # Its quantum is 2 MiB: the PTE tables are shared, two for each, or three if the memory starts
    # within one's span; PMD and PUD tables are not.
    assert found["own_tables_bytes"] in (4 * LEAST_TABLES, 6 * LEAST_TABLES)
    assert found["upper_tables_bytes"] >= 4 * 2 * 4096
    assert report.text(found) in said
    assert "written to" in said
    assert "<svg" in path.read_text()


def test_run_with_a_report_on_a_given_mount(mount: Mount, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    watch(path, "--mount", mount.path, "--report", path)
    check(schema.check(json.loads(path.read_text())), 4)
    assert list(tmp_path.iterdir()) == [path]


def test_each_of_two_programs_on_a_mount_is_told_its_own(mount: Mount, tmp_path: Path) -> None:
    """A third one has had its region for a while, with faults that are nobody's else."""
    reports = [tmp_path / "one.json", tmp_path / "other.json"]
    with program(mount):
        for seconds in (0.3, 2, 10):
            running = [
                start("--mount", mount.path, "--report", path, "--", sys.executable, "-c", FORKS,
                      "wait")
                for path in reports
            ]  # fmt: skip
            for process in running:
                assert process.stdout
                assert process.stdout.readline() == "shared\n"
            time.sleep(seconds)
            for process in running:
                process.communicate("\n", timeout=60)
            found = [json.loads(path.read_text()) for path in reports]
            if all(map(is_whole, found)):
                break
    for one in found:
        check(one, 4)
        assert (one["attachments"], len(one["regions"])) == (4, 1)
        (region,) = one["regions"]
        assert len(region["map"]["clients"]) <= 4
    assert found[0]["regions"][0]["ident"] != found[1]["regions"][0]["ident"]


def test_a_region_of_several_programs_is_told_with_ones_own_processes(mount: Mount) -> None:
    """And with what has happened in it since the start."""
    with program(mount) as four:
        with sampling.Sampler(lambda: four.pids[:2], mount.state, others=True) as sampler:
            pass
        found = sampler.document()
        assert (found["processes"], found["clients"], found["attachments"]) == (2, 2, 2)
        assert found["own_tables_bytes"] == 2 * TABLES
        assert found["mapped_bytes"] == SIZE
        assert found["page_table_bytes"] == TABLES + 4096
        assert (found["region_faults"], found["prefaulted"], found["links"]) == (0, 0, 0)
        with sampling.Sampler(list, mount.state, others=True) as sampler:
            pass
        found = sampler.document()
        assert (found["regions"], found["clients"], found["page_table_bytes"]) == ([], 0, 0)


def test_a_report_waits_for_those_whose_parents_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    process = start("--report", path, "--", sys.executable, "-c", FORKS)
    finish(process, 0)
    assert process.returncode == 0  # the children are left behind, and then end
    until(lambda: not private_mounts(), "its mount is gone")  # that is done last
    assert json.loads(path.read_text())["status"] == 0


def test_a_report_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    process = start("--report", tmp_path / "none" / "r.html", "--", "touch", tmp_path / "ran")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "none" in said
    assert not (tmp_path / "ran").exists()


UNMAPS = """
import os, msharefs
path = os.environ["MSHAREFS_MOUNT"] + "/unmapped"
with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
    region.truncate(512 << 30)
    region.map(0, 2 << 20)
    with region.attach() as memory:
        memory[0] = 1
        region.unmap(0, 1 << 20)
        region.unmap(1 << 20, 1 << 20)
        region.stat()  # which looks who ran where
os.unlink(path)
"""


def test_shootdowns_of_a_run(mount: Mount, tmp_path: Path) -> None:
    """Those of before are not the program's, and those of regions that have gone are."""
    path = tmp_path / "report.json"
    run = [sys.executable, "-m", "msharefs", "run", "--mount", mount.path]
    subprocess.run([*run, "--", sys.executable, "-c", UNMAPS], check=True)
    done = subprocess.run(
        [*run, "--report", path, "--", sys.executable, "-c", UNMAPS],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = schema.check(json.loads(path.read_text()))["shootdowns"]
    cpus = os.cpu_count()
    assert cpus
    assert (found["unmap"]["times"], found["unmap"]["flush_all"]) == (2, 2 * cpus)
    assert 1 <= found["unmap"]["cpumask"] <= found["unmap"]["list"]
    assert found["protect"]["times"] == 0
    assert re.search(
        r"^shootdowns by unmap +2 +messages to processors: ", done.stderr, re.MULTILINE
    )
    assert "shootdowns by protect" not in done.stderr


PARENT = """
import mmap, os, sys
memory = mmap.mmap(-1, 4 << 20)
memory[0] = 1
if os.fork():
    os._exit(3)
if sys.argv[1] == "daemon":
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
with open(sys.argv[2]) as go:
    go.read()
"""


class Leaver:
    """A program that ends while its child waits for our word."""

    def __init__(self, mount: Mount, directory: Path, how: str, stderr: Any) -> None:
        self.report = directory / "report.json"
        self._go = directory / "go"
        os.mkfifo(self._go)
        program = [sys.executable, "-c", PARENT, how, self._go]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "msharefs", "run", "--adopt-anon", "1M",
             "--mount", mount.path, "--report", self.report, "--", *program],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__(None, None, None)

    def go(self) -> None:
        """Lets the child end."""
        self._go.write_text("")


def test_a_daemon_keeps_no_reader_waiting_and_the_report_is_told(
    mount: Mount, tmp_path: Path
) -> None:
    """When nobody is left who could write to the pipe; the file has all that comes later, too."""
    with Leaver(mount, tmp_path, "daemon", subprocess.PIPE) as leaver:
        _, said = leaver.process.communicate(timeout=60)
        assert leaver.process.returncode == 3
        first = json.loads(leaver.report.read_text())
        assert report.text(first) in said
        assert said.endswith(
            f"{leaver.report}; processes of it go on, and it is written anew when they have ended\n"
        )
        leaver.report.unlink()
        leaver.go()
        until(leaver.report.exists, "the report is written anew")


def test_a_child_that_could_still_write_is_waited_for(mount: Mount, tmp_path: Path) -> None:
    with Leaver(mount, tmp_path, "child", subprocess.PIPE) as leaver:
        assert leaver.process.wait(60) == 3  # its status comes at once
        assert leaver.report.read_text() == ""
        leaver.go()
        assert leaver.process.stderr
        said = leaver.process.stderr.read()
    assert said.count("status 3") == 1
    assert said.endswith(f"\nwritten to {leaver.report}\n")


def test_into_a_file_it_is_told_when_all_is_over(mount: Mount, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("w") as file, Leaver(mount, tmp_path, "daemon", file) as leaver:
        assert leaver.process.wait(60) == 3
        assert not said.read_text()
        leaver.go()
        last = f"\nwritten to {leaver.report}\n"
        until(lambda: said.read_text().endswith(last), "it is told")
