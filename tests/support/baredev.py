"""Shell scripts with a /dev of their own: a test says which devices there are, and for whom."""

from __future__ import annotations

import subprocess

LIMIT = 60.0  # seconds


def in_bare_dev(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a /dev that has nothing but null, urandom and an empty /dev/shm."""
    setup = """
        set -e
        new=$(mktemp -d); mount -t tmpfs -o mode=755 dev "$new"
        mknod -m 666 "$new/null" c 1 3; mknod -m 666 "$new/urandom" c 1 9
        mkdir -m 1777 "$new/shm"; mount -t tmpfs -o mode=1777 tmpfs "$new/shm"
        mount --move "$new" /dev; rmdir "$new"
    """
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", setup + script],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
