"""First inputs for the targets that libFuzzer runs: seeds.py DIRECTORY.

The target makes the region itself (region.c); an input only says what is done to it. So these are
the shortest inputs that reach each kind of step, written as the targets read them.
"""

from __future__ import annotations

import sys
from pathlib import Path

SHAPES = (0, 120, 248)
MM_STEPS = 20
CLIENT_STEPS = 8
ARGUMENTS = (
    bytes(12),
    bytes(range(12)),
    b"\xff" * 12,
    bytes([6, 31, 7, 0, 6, 17, 1, 6, 3, 9, 6, 2]),
)


def mm() -> list[bytes]:
    """fuzz_mm.c: a shape, then steps, each with its arguments."""
    every = b"".join(bytes([step]) + ARGUMENTS[1] for step in range(MM_STEPS))
    steps = [bytes([step]) + arguments for step in range(MM_STEPS) for arguments in ARGUMENTS]
    return [bytes([shape]) + step for shape in SHAPES for step in (*steps, every)]


def client() -> list[bytes]:
    """fuzz_client.c: a shape, scribbles, the replies to ATTACH and READY; then steps."""
    steps = [bytes([step]) + arguments for step in range(CLIENT_STEPS) for arguments in ARGUMENTS]
    attached = [bytes([0, 0, 0]) + step * 2 for step in steps]
    refused = [
        bytes([0, 0, said, 1, change]) + ARGUMENTS[1] for said in (1, 2) for change in range(8)
    ]
    return [*attached, *refused, b"".join([bytes(3), *steps])]


def main() -> None:
    for name, inputs in (("fuzz_mm", mm()), ("fuzz_client", client())):
        directory = Path(sys.argv[1]) / name
        directory.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (directory / f"{number:03}").write_bytes(data)


main()
