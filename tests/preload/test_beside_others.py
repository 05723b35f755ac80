"""`msharefs run` of a program that other libraries want to be before, too, or that takes none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import suited

if TYPE_CHECKING:
    from support.server import Mount

MSHAREFS = [sys.executable, "-P", "-m", "msharefs"]
WAYS = [[], ["--adopt-anon", "1M"]]

# As those of tcmalloc: system calls, by number.
BY_NUMBER = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
void *mmap(void *at, size_t size, int prot, int flags, int fd, long offset)
{
    return (void *)syscall(SYS_mmap, at, size, prot, flags, fd, offset);
}
int munmap(void *at, size_t size) { return syscall(SYS_munmap, at, size); }
int madvise(void *at, size_t size, int advice) { return syscall(SYS_madvise, at, size, advice); }
int close(int fd) { return syscall(SYS_close, fd); }
"""

SAYS = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) { return puts(getenv("LD_PRELOAD") ? "preloaded" : "none") < 0; }
"""

# Shared memory of its own, and a region; both are there for a child.
PROGRAM = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int fd = open(argv[1], O_RDWR), status;
    char *own = mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *region = mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *heap = malloc(3 << 20);

    if (fd < 0 || own == MAP_FAILED || region == MAP_FAILED || !heap || close(fd))
        return 2;
    status = 0;
    if (FORKS && fork()) {
        wait(&status);
    } else {
        own[4096] = region[4096] = 7;
        if (FORKS)
            _exit(0);
    }
    free(heap);
    if (own[4096] != 7 || region[4096] != 7 || munmap(own, 8 << 20) || munmap(region, 2 << 20))
        return 3;
    puts("right");
    return status;
}
"""


def compiled(to: Path, text: str, *flags: str) -> Path:
    source = to.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["cc", "-O1", "-o", to, source, *flags], check=True)
    return to


@pytest.fixture(scope="module")
def region(shared_mount: Mount) -> Path:
    import msharefs

    path = shared_mount.path / "beside"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as made:
        made.truncate(2 << 20)
        made.map(0, 2 << 20)
    return path


def run(
    mount: Mount, how: list[str], *command: str | Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MSHAREFS, "run", "--mount", str(mount.path), *how, "--", *map(str, command)],
        env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_a_library_that_calls_by_number(
    shared_mount: Mount, region: Path, tmp_path: Path, how: list[str]
) -> None:
    other = compiled(tmp_path / "other.so", BY_NUMBER, "-shared", "-fPIC", "-w")
    program = compiled(tmp_path / "program", PROGRAM, "-DFORKS=1")
    done = run(shared_mount, how, program, region, LD_PRELOAD=str(other))
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("given", ["", "detect_leaks=0"])
def test_address_sanitizer(
    shared_mount: Mount, region: Path, tmp_path: Path, how: list[str], given: str
) -> None:
    # It does not fork: the sanitizer's allocator may not be forked while a thread is in it.
    program = compiled(tmp_path / "program", PROGRAM, "-DFORKS=0", "-fsanitize=address")
    done = run(shared_mount, how, program, region, ASAN_OPTIONS=given)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


def test_its_own_options_are_kept(shared_mount: Mount) -> None:
    echo = ["sh", "-c", "echo $ASAN_OPTIONS"]
    asked = run(shared_mount, [], *echo, ASAN_OPTIONS="detect_leaks=0").stdout
    assert asked == "detect_leaks=0:verify_asan_link_order=0\n"
    asked = run(shared_mount, [], *echo, ASAN_OPTIONS="verify_asan_link_order=1").stdout
    assert asked == "verify_asan_link_order=1\n"


def test_a_program_of_musl_runs_without_the_library(shared_mount: Mount, tmp_path: Path) -> None:
    """Told by the name of its dynamic linker; this one is glibc's, with that name."""
    linker = tmp_path / "ld-musl-x86_64.so.1"
    linker.symlink_to(Path("/lib64/ld-linux-x86-64.so.2").resolve())
    program = compiled(tmp_path / "program", SAYS, f"-Wl,--dynamic-linker={linker}")
    done = run(shared_mount, [], program)
    assert (done.returncode, done.stdout) == (0, "none\n")
    assert done.stderr == (
        f"msharefs: {program} is linked with musl, and our library with glibc: it runs without "
        "it, and its mmap(2) is Linux's own\n"
    )


def test_which_programs_take_it(tmp_path: Path) -> None:
    static = compiled(tmp_path / "static", "int main(void) { return 0; }", "-static")
    found = suited.look(str(static))
    assert found is not None
    assert found.sentence == "is linked statically"
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env sh\n")
    for program in ("sh", sys.executable, str(script), "nothing-of-that-name", str(tmp_path)):
        assert suited.look(program) is None
    script.write_text(f"#!{static}\n")
    assert suited.look(str(script)) == found
    broken = tmp_path / "broken"
    broken.write_bytes(static.read_bytes()[:20])
    assert suited.look(str(broken)) is None
