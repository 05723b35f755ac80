"""Processes whose every system call a test decides, compiled here, with any flags."""

from __future__ import annotations

import subprocess
from pathlib import Path

from msharefs.conformance.agent import Agent, Agents, Argument

__all__ = ["Agent", "Agents", "Argument", "build"]

SOURCE = Path(__file__).parents[2] / "native" / "agent" / "agent.c"


def build(program: Path, *flags: str) -> Path:
    """Compile the agent."""
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
         "-o", program, SOURCE, *flags, "-ldl"],
        check=True,
    )  # fmt: skip
    return program
