"""Plug-ins loaded with RTLD_DEEPBIND, which find the C library before any that is preloaded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import running

from .conftest import QUANTUM
from support.proc import maps

if TYPE_CHECKING:
    from support.agent import Agent
    from support.server import Mount

SOURCE = Path(__file__).parents[1] / "programs" / "plugin.c"
LAZY, NOW, DEEPBIND, GLOBAL = 1, 2, 8, 0x100
SIZE = 2 * QUANTUM


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plugin") / "plugin.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", made, SOURCE], check=True)
    return made


def adopted(agent: Agent) -> int:
    return sum(".mem" in each.path for each in maps(agent.pid))


@pytest.mark.parametrize("flags", [LAZY, NOW, NOW | DEEPBIND, LAZY | DEEPBIND])
def test_memory_of_a_plugin_is_adopted(adopting: Agent, plugin: Path, flags: int) -> None:
    assert adopting.call("dlopen", str(plugin), flags | GLOBAL)
    first = adopting.call("plugin_map", SIZE)
    second = adopting.call("plugin_map_by_pointer", SIZE)
    assert adopted(adopting) == 2
    assert adopting.store(first, 1) == "ok"
    assert adopting.call("plugin_unmap", first, SIZE) == 0
    assert adopting.call("plugin_unmap", second, SIZE) == 0
    assert adopted(adopting) == 0


def test_it_is_plain_without_us(plain: Agent, plugin: Path) -> None:
    assert plain.call("dlopen", str(plugin), NOW | DEEPBIND | GLOBAL)
    assert plain.load(plain.call("plugin_map", SIZE)) == "0"
    assert adopted(plain) == 0


def test_a_name_is_looked_for_where_its_caller_looks(
    plugin: Path, tmp_path: Path, shared_mount: Mount
) -> None:
    """DT_RUNPATH is the caller's: what is loaded by a name is found as without us."""
    program = tmp_path / "program"
    source = '#include <dlfcn.h>\nint main(void) { return !dlopen("plugin.so", RTLD_NOW | FLAGS); }'
    for flags in ("0", "RTLD_DEEPBIND"):
        subprocess.run(
            ["cc", "-D_GNU_SOURCE", f"-DFLAGS={flags}", "-xc", "-", "-o", program,
             f"-Wl,-rpath,{plugin.parent}", "-Wl,--enable-new-dtags"],
            input=source, text=True, check=True,
        )  # fmt: skip
        for environ in (None, running.environment(shared_mount.path, 1 << 20)):
            assert subprocess.run([program], env=environ, check=False).returncode == 0
