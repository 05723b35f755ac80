"""Debian's programs, plain and adopted: the ones of scripts/programs that `make test` can have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[2] / "scripts" / "programs"


@pytest.mark.parametrize("name", ["gunicorn", "nginx", "python"])
def test_output_and_exit_are_alike(name: str) -> None:
    done = subprocess.run(
        [PROGRAMS, name], timeout=250, check=False, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:4] for row in rows[1:]] == [[name, "0", "0", "same"]], done.stdout
    assert int(rows[1][4]) > 0, "memory was adopted"
