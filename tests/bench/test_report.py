"""Watching programs, and the report of a run."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from msharefs import client, plan, report, sampling
from msharefs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

SIZE = 16 << 20
PAGES = SIZE // 4096
CLIENTS = 4
TABLES = (PAGES // 512 + 2) * 4096  # PTE, PMD and PUD tables


@contextmanager
def program(mount: Mount) -> Iterator[Workers]:
    """Processes that share an unlinked region, as adopted memory is, and have read all of it."""
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


def test_own_tables_are_what_goes_with_the_window(mount: Mount) -> None:
    with program(mount) as workers:
        before = [sampling.vmpte(pid) for pid in workers.pids]
        workers.ask("detach")
        after = [sampling.vmpte(pid) for pid in workers.pids]
    # The kernel's own account. With the window goes the client's mapping of the host mm itself:
    # some tables too, for header, slots, VMAs and frames.
    for freed in (one - other for one, other in zip(before, after, strict=True)):
        assert TABLES <= freed <= TABLES + 6 * 4096


def test_a_process_that_is_gone_has_no_tables() -> None:
    gone = 1 << 22  # above pid_max
    assert sampling.vmpte(gone) == 0
    assert sampling.own_tables(gone, 0, SIZE) == 0


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
    assert re.search(r"^faults +567 ", text, re.MULTILINE)
    assert re.search(rf"^ratio +{found['ratio']:.3g}x ", text, re.MULTILINE)
    html, figures = report.write(found, tmp_path / "r.html")
    page = html.read_text()
    assert "&lt;a b&gt;" in page
    assert "<a b>" not in page
    assert page.count("data:image/png;base64,iVBOR") == 2  # over time, and a map
    assert "http" not in page  # nothing is fetched
    assert json.loads(figures.read_text()) == found


def test_a_plan_from_it(seen: sampling.Sampler) -> None:
    found = report.document(["x"], 0, 1.0, 0, seen)
    measured = plan.measured(found)
    assert (measured.size, measured.clients) == (SIZE, CLIENTS)
    assert measured.touched.client == 1
    assert measured.touched.anybody == 1
    with pytest.raises(ValueError, match="no figures"):
        plan.measured({**found, "clients": 0})
