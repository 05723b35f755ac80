"""Compiling small C programs against the installed library, with pkg-config, like a user."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from msharefs import installed

if TYPE_CHECKING:
    from pathlib import Path

SANITIZERS = (
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    if "MSHAREFS_SANITIZE" in os.environ
    else ()
)
"""Compiler flags under `make sanitize`, as the library has them then."""


def build(source: Path, program: Path, *flags: str, prefix: Path | None = None) -> Path:
    """Compile a C file into a program linked with libmsharefs; returns the program.

    The library is found again at run time by the program's run path. Warnings are errors.
    """
    libdir = (prefix or installed.prefix()) / "lib"
    environ = {**os.environ, "PKG_CONFIG_PATH": str(libdir / "pkgconfig")}
    pkg = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "msharefs"], env=environ, text=True
    )
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
         *SANITIZERS, "-o", program, source, *flags, *shlex.split(pkg)],
        check=True,
    )  # fmt: skip
    return program
