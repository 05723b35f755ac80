"""numpy arrays on a region: one process fills, others compute, and nobody copies anything.

python numpy_share.py /mnt/matrix
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import msharefs

SHAPE = (512, 512)
SIZE = 2 << 20  # 512 * 512 * 8 bytes: also a multiple of every quantum up to 2M


def matrix(region: msharefs.Region) -> np.ndarray:
    """The region's memory as an array of doubles."""
    return np.frombuffer(region.attach(), dtype=np.float64).reshape(SHAPE)


def work(path: Path, part: int, parts: int) -> None:
    """A worker, which knows the region by its name: prints the sum of its rows."""
    with msharefs.open(path) as region:
        rows = matrix(region)[part::parts]
        print(rows.sum())
        del rows  # views end before the region is closed


def main(path: Path) -> None:
    """Fill, and let four processes compute."""
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        whole = matrix(region)
        whole[:] = np.arange(whole.size, dtype=np.float64).reshape(SHAPE)
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, path, str(part)], stdout=subprocess.PIPE, text=True
            )
            for part in range(4)
        ]
        total = sum(float(worker.communicate()[0]) for worker in workers)
        assert total == whole.sum(), (total, whole.sum())
        print(f"{total:.0f}, with {region.stat()['page_table_bytes']} bytes of page tables")
        del whole


if __name__ == "__main__":
    if len(sys.argv) > 2:
        work(Path(sys.argv[1]), int(sys.argv[2]), 4)
    else:
        main(Path(sys.argv[1]))
