"""scripts/setup: what it says and installs, also where something is missing; pip is not real."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USED = ("bash", "cat", "dirname", "env", "find", "flock", "mkdir", "rm", "sed", "sha256sum", "sort",
        "tr", "xargs", "python3", "cc", "gcc", "pkg-config", "fusermount3")  # fmt: skip

# Stands for .venv/bin/python: it notes what pip is to install, and does the rest for real.
PYTHON = f"""#!/bin/sh
case "$*" in
*"-m pip --version"*) exit 0 ;;
*"-m pip "*) echo "$*" >>../pip.log; exit "${{PIP_STATUS:-0}}" ;;
*_fuse_hook*) exit 0 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


class Clone:
    """A bare clone as far as setup reads it, and a PATH of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.top = base / "clone"
        (self.top / "scripts").mkdir(parents=True)
        for name in ("pyproject.toml", "CMakeLists.txt", "scripts/setup"):
            shutil.copy(ROOT / name, self.top / name)
        (self.top / "native").mkdir()
        self.program(self.top / ".venv/bin/python", PYTHON)
        self.bin = base / "bin"
        self.bin.mkdir()
        for name in USED:
            found = shutil.which(name)
            assert found, name
            (self.bin / name).symlink_to(found)
        (self.top / "build").mkdir(mode=0o777)
        (self.top / "build").chmod(0o777)
        self.pretend("apt-get", 'echo "$*" >>../apt.log; echo "Need to get 7 MB of archives."')

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def pretend(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        self.program(self.bin / name, f"#!/bin/sh\n{text}\n")

    def setup(
        self, *arguments: str, user: int | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.top / "scripts/setup", *arguments],
            env={"PATH": str(self.bin), "PYTHON": sys.executable, **environ},
            cwd=self.top, check=False, user=user, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def log(self, name: str) -> str:
        path = self.base / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def clone(public_tmp: Path) -> Clone:
    return Clone(public_tmp)


def test_each_step_is_announced_and_the_demonstration_needs_no_test_packages(clone: Clone) -> None:
    done = clone.setup()
    assert done.returncode == 0, done.stderr
    packages, build, end = done.stdout.splitlines()
    assert packages.startswith("setup: installing Python packages to build and to run, some ")
    assert build.startswith("setup: building msharefs, about ")
    assert end.startswith("setup: done, in ")
    assert "pyfuse3" in clone.log("pip.log")
    for name in ("pytest", "hypothesis", "matplotlib", "ruff"):
        assert name not in clone.log("pip.log")
    again = clone.setup()
    assert (again.returncode, again.stdout) == (0, "")


def test_tests_and_lint_add_theirs_once(clone: Clone) -> None:
    clone.setup()
    for what, name in (("pytest", "hypothesis"), ("lint", "ruff")):
        assert clone.setup(what).returncode == 0
        assert clone.log("pip.log").count(name) == 1
        assert clone.setup(what).stdout == ""
    assert clone.log("pip.log").count("pytest-timeout") == 1


def test_a_browser_that_cannot_be_had_leaves_out_its_tests_alone(clone: Clone) -> None:
    clone.pretend("apt-get", 'echo "$*" >>../apt.log; case "$*" in *chromium*) exit 1 ;; esac')
    done = clone.setup("tests")
    assert done.returncode == 0, done.stderr
    assert "chromium-headless-shell" in clone.log("apt.log")
    assert "setup: the tests of chromium-headless-shell will be skipped" in done.stdout
    assert "pytest-timeout" in clone.log("pip.log")
    clone.pretend("chromium", "")
    assert "chromium" not in clone.setup("tests").stdout


def test_a_compiler_that_is_not_found_even_so(clone: Clone) -> None:
    """Debian's is installed, but not in PATH: it was CMake's text."""
    (clone.bin / "cc").unlink()
    done = clone.setup()
    assert done.returncode == 1
    assert "setup:   Need to get 7 MB of archives." in done.stdout
    assert clone.log("apt.log").splitlines()[-1].endswith("gcc libc6-dev systemtap-sdt-dev")
    assert done.stderr.startswith("setup: gcc libc6-dev")
    assert f"is not found: PATH is {clone.bin}" in done.stderr
    assert clone.log("pip.log") == ""


def test_a_user_is_told_what_to_install(clone: Clone) -> None:
    (clone.bin / "cc").unlink()
    done = clone.setup(user=65534)
    assert (done.returncode, clone.log("apt.log")) == (1, "")
    assert "sudo apt-get install gcc libc6-dev" in done.stderr


def test_a_libfuse_that_is_too_old(clone: Clone) -> None:
    clone.pretend(
        "pkg-config",
        'case "$1" in --exists) exit 0 ;; --modversion) echo 3.10.5 ;; *) exit 1 ;; esac',
    )
    done = clone.setup()
    assert done.returncode == 1
    assert done.stderr.startswith("setup: libfuse 3.10.5 is too old: 3.14 or later is needed")
    assert clone.log("pip.log") == ""


def test_no_network(clone: Clone) -> None:
    done = clone.setup(PIP_STATUS="1")
    assert done.returncode == 1
    assert done.stderr.startswith("setup: pip could not install scikit-build-core")
    assert "ca-certificates?" in done.stderr
    assert not (clone.top / ".venv/.msharefs-setup").exists()
