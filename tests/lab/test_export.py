"""`msharefs export`, read again as the programs read it that it is for."""

from __future__ import annotations

import csv
import io
import mmap
import os
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest
from click.testing import CliRunner

import msharefs
from msharefs import verbs
from msharefs.cli import cli
from msharefs.lab import export
from msharefs.native import lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")
PAGE = 4096
SPAN = 2 << 20
SIZE = 8 << 20
STORED = [0, 3, 511, 512, 700]
LOADED = [1, 2, 600]
FILE_PAGES = 16
FILE_AT = 2 * SPAN // PAGE
"""The page at which a file is mapped, from its third page on; the end of the region is a hole."""
FILE_USED = FILE_AT + 5
"""A block of 16 pages comes with it, as with a fault of Linux's; those have not been accessed."""


@pytest.fixture(scope="module")
def region(
    shared_mount: Mount, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[msharefs.Region]:
    """Memory of which some pages were loaded from, and some stored to; and a file."""
    path = tmp_path_factory.mktemp("export") / "a, file"
    path.write_bytes(b"x" * (FILE_PAGES + 2) * PAGE)
    with (
        path.open("r+b") as file,
        msharefs.open(shared_mount.path / "export", os.O_RDWR | os.O_CREAT) as made,
    ):
        made.truncate(SIZE)
        made.map(0, 2 * SPAN)
        made.map(
            FILE_AT * PAGE, FILE_PAGES * PAGE, mmap.PROT_READ, mmap.MAP_SHARED | verbs.MAP_FIXED,
            file.fileno(), 2 * PAGE,
        )  # fmt: skip
        view = made.attach()
        for page in STORED:
            view[page * PAGE] = 1
        for page in [*LOADED, FILE_USED]:
            assert view[page * PAGE] in (0, ord("x"))
        made.protect(SPAN, PAGE, 0)
        yield made
        made.detach()


def exported(region: msharefs.Region, *options: str) -> bytes:
    done = CliRunner().invoke(cli, ["export", *options, region.path])
    assert done.exit_code == 0, done.output
    return done.stdout_bytes


def rows(region: msharefs.Region, *options: str) -> dict[int, dict[str, str]]:
    """The lines of CSV, by page."""
    text = exported(region, *options).decode()
    return {int(row["offset_bytes"]) // PAGE: row for row in csv.DictReader(io.StringIO(text))}


def test_every_entry_is_a_line(region: msharefs.Region) -> None:
    found = rows(region)
    block = range(FILE_AT, FILE_AT + FILE_PAGES)
    assert sorted(found) == sorted([*STORED, *LOADED, *block])
    for page, row in found.items():
        flags = row["flags"].split("|")
        assert row["size_bytes"] == str(PAGE)
        assert int(row["address"], 16) == lib.HOST_BASE + page * PAGE
        assert int(row["frame"], 16) == (int(row["entry"], 16) & export.FRAME_BITS) >> 12
        assert ("D" in flags) == (page in STORED)
        assert ("A" in flags) == (page < FILE_AT or page == FILE_USED)
        assert ("P" in flags, "PROTNONE" in flags) == (page != 512, page == 512)
        if page >= FILE_AT:
            assert row["object"].endswith("/a, file")
            assert int(row["object_offset_bytes"]) == (2 + page - FILE_AT) * PAGE
            assert "RW" not in flags
        else:
            assert (row["object"], row["object_offset_bytes"]) == ("anon", str(page * PAGE))


def test_the_entries_are_those_that_the_tables_count(region: msharefs.Region) -> None:
    levels = {each["level"]: each["tables"] for each in region.describe("pagetable")["levels"]}
    present = sum(table["present"] for table in levels["pte"])
    dirty = sum(table["dirty"] for table in levels["pte"])
    flags = [row["flags"].split("|") for row in rows(region).values()]
    assert sum("P" in each for each in flags) == present
    assert sum("P" in each and "D" in each for each in flags) == dirty
    frames = [row["frame"] for row in rows(region).values()]
    assert len(set(frames)) == len(frames)


class Instruction(NamedTuple):
    """struct input_instr, as ChampSim's header declares it for C++: 64 bytes without padding."""

    ip: int
    is_branch: int
    branch_taken: int
    destination_registers: tuple[int, ...]
    source_registers: tuple[int, ...]
    destination_memory: tuple[int, ...]
    source_memory: tuple[int, ...]


def instructions(trace: bytes) -> list[Instruction]:
    """A reader by the published layout, which shares nothing with the writer."""
    layout = struct.Struct("<QBB2B4B2Q4Q")
    assert layout.size == 64
    assert len(trace) % layout.size == 0
    return [
        Instruction(*each[:3], each[3:5], each[5:9], each[9:11], each[11:])
        for each in layout.iter_unpack(trace)
    ]


def test_a_trace_for_champsim_touches_the_pages_that_were_used(region: msharefs.Region) -> None:
    trace = instructions(exported(region, "--format", "champsim"))
    stores = [page for each in trace for page in each.destination_memory if page]
    loads = [page for each in trace for page in each.source_memory if page]
    base = lib.HOST_BASE
    # Nobody can touch page 512 any more.
    assert stores == [base + page * PAGE for page in STORED if page != 512]
    assert loads == [base + page * PAGE for page in [*LOADED, FILE_USED]]
    assert len(trace) == len(stores) + len(loads)
    assert len({each.ip & ~(PAGE - 1) for each in trace}) == 1, "code adds no page but one"
    assert not any(each.is_branch or each.branch_taken for each in trace)
    assert {each.destination_registers + each.source_registers for each in trace} == {(0,) * 6}


def test_mappings_for_virtuoso(region: msharefs.Region, tmp_path: Path) -> None:
    output = tmp_path / "trace.vma"
    assert exported(region, "--format", "virtuoso", "-o", str(output)) == b""
    lines = output.read_text().splitlines()
    # As merge_vmas.py of Virtuoso reads it: two numbers of base 16 around a dash.
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]{12}", line) for line in lines)
    found = [tuple(int(end, 16) - lib.HOST_BASE for end in line.split("-")) for line in lines]
    assert found == [(each["start"], each["end"]) for each in region.maps()]
    assert found[-1] == (FILE_AT * PAGE, (FILE_AT + FILE_PAGES) * PAGE)


def test_huge_pages_are_one_line_each() -> None:
    leaves = export.np.array(
        [(lib.HOST_BASE + SPAN, SPAN, 0x80000080000000E7), (lib.HOST_BASE + 2 * SPAN, SPAN, 0x87)],
        export.LEAF,
    )
    mapping = export.Mapping(SPAN, 3 * SPAN, "anon", SPAN, leaves)
    text = b"".join(export.to_csv([mapping])).decode()
    huge, unused = csv.DictReader(io.StringIO(text))
    assert (huge["size_bytes"], huge["flags"]) == (str(SPAN), "P|RW|US|A|D|PS|NX")
    assert unused["flags"] == "P|RW|US|PS"
    assert [each.destination_memory[0] for each in instructions(
        b"".join(export.to_champsim([mapping]))
    )] == [lib.HOST_BASE + SPAN]  # fmt: skip


def test_nothing_is_no_error(shared_mount: Mount) -> None:
    with msharefs.open(shared_mount.path / "nothing", os.O_RDWR | os.O_CREAT) as empty:
        empty.truncate(SIZE)
        assert exported(empty) == (",".join(export.COLUMNS) + "\n").encode()
        assert exported(empty, "--format", "champsim") == b""
        assert exported(empty, "--format", "virtuoso") == b""


def test_what_is_no_region_is_refused(shared_mount: Mount) -> None:
    done = CliRunner().invoke(cli, ["export", str(shared_mount.path)])
    assert isinstance(done.exception, IsADirectoryError)
    assert "is a directory, not a region" in str(done.exception)
