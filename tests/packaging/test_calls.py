"""Every call has its name everywhere: header, library, Python, manual, guide."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import installed
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from support.server import Mount

TOP = Path(__file__).parents[2]

# Those of 2026, and ours beside them; and what they are in Python.
CALLS = {
    "mshare_create": msharefs.create,
    "mshare_attach": msharefs.Region.attach,
    "mshare_detach": msharefs.Region.detach,
    "mshare_map": msharefs.Region.map,
    "mshare_unmap": msharefs.Region.unmap,
    "mshare_protect": msharefs.Region.protect,
    "mshare_advise": msharefs.Region.advise,
    "mshare_lock": msharefs.Region.lock,
    "mshare_unlock": msharefs.Region.unlock,
    "mshare_mbind": msharefs.Region.mbind,
    "mshare_sync": msharefs.Region.sync,
    "mshare_query": msharefs.Region.query,
    "mshare_seal": msharefs.Region.seal,
    "mshare_set_owner": msharefs.Region.set_owner,
    "mshare_stat": msharefs.Region.stat,
    "mshare_budget": msharefs.Region.attach,  # budget=
    "mshare_version": msharefs.__version__,
}


@pytest.fixture(scope="module")
def header() -> str:
    return (TOP / "native/include/msharefs.h").read_text(encoding="utf-8")


def test_the_header_declares_them_and_no_others(header: str) -> None:
    declared = re.findall(r"^MSHARE_API [^;(]*?\*?(\w+)\(", header, re.MULTILINE)
    assert sorted(declared) == sorted(CALLS)


def test_the_library_has_them_with_a_version() -> None:
    library = installed.libdir() / "libmsharefs.so.1"
    said = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    symbols = {line.split()[-1] for line in said.splitlines() if " T " in line}
    assert symbols == {f"{name}@@MSHAREFS_1" for name in CALLS}


def test_each_has_a_page_of_the_manual() -> None:
    script = "import json, manuals; print(json.dumps({n: t for n, t in manuals.pages().items()}))"
    said = subprocess.check_output(
        [sys.executable, "-c", script], text=True, cwd=TOP / "scripts", env={"PYTHONPATH": "."}
    )
    pages = json.loads(said)
    for name in CALLS:
        assert f"{name}.3" in pages
        assert name in pages[f"{name}.3"]
    assert "MSHARE_MAP_FROM" in pages["mshare_map.3"]


def test_python_and_the_library_are_of_one_version() -> None:
    assert ffi.string(lib.mshare_version()).decode() == msharefs.__version__


def test_all_of_them_are_documented_in_python() -> None:
    for name, function in CALLS.items():
        if callable(function):
            assert function.__doc__, name


@pytest.mark.parametrize("size", [8, 16, 4096])
def test_a_program_says_how_long_its_struct_is(shared_mount: Mount, size: int) -> None:
    """It may have been compiled with a later header, or with an earlier one."""
    path = shared_mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 << 20)
        found = ffi.new("uint8_t[]", b"\xff" * (size + 8))
        assert lib.mshare_stat(region.fd, ffi.cast("struct mshare_stat *", found), size) == 0
        known = min(size, ffi.sizeof("struct mshare_stat"))
        assert int.from_bytes(bytes(found[0:8]), "little") == 2 << 20
        assert set(bytes(found[known:size])) <= {0}
        assert bytes(found[size : size + 8]) == b"\xff" * 8, "nothing behind it is touched"
    path.unlink()
