"""The hook must come before pyfuse3; otherwise ioctl would silently not work."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=30
    )


def test_wrong_order_is_refused() -> None:
    done = python("import pyfuse3, msharefs.server.fuse")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(
        "ImportError: pyfuse3 was imported before msharefs.server.fuse, so ioctl() would not reach "
        "the server: import msharefs.server.fuse first"
    )


def test_right_order_leaves_the_loader_as_it_was() -> None:
    done = python(
        "import sys; flags = sys.getdlopenflags(); import msharefs.server.fuse as fuse;"
        "assert sys.getdlopenflags() == flags; print(fuse.libfuse_version())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3.")


def test_a_pyfuse3_that_misses_the_hook_is_noticed() -> None:
    """Like a pyfuse3 with libfuse linked in: its session is made without us."""
    done = python("""
from pathlib import Path
import msharefs.server.fuse as fuse
fuse.pyfuse3 = type("Fake", (), {"init": lambda *_: None, "close": lambda **_: print("closed")})
try:
    fuse.mount(None, Path("/nowhere"), set())
except OSError as error:
    print(error.strerror)
""")
    assert done.stdout.startswith("closed\npyfuse3 does not call our fuse_session_new()"), done


def test_a_libfuse_that_is_too_old_is_refused() -> None:
    done = python("""
from pathlib import Path
import msharefs.server.fuse as fuse
fuse.libfuse_version = lambda: "3.10.5"
try:
    fuse.mount(None, Path("/nowhere"), set())
except OSError as error:
    print(error.strerror)
""")
    assert done.stdout == "libfuse 3.10.5 is too old: install 3.14 or later (Debian 12 has it)\n"


def test_pyfuse3_stays_out_of_the_client_and_the_command() -> None:
    done = python(
        "import sys, msharefs.client, msharefs.cli.mount, msharefs.cli.umount;"
        "assert 'pyfuse3' not in sys.modules and 'trio' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
