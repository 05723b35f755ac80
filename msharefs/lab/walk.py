"""A region's page tables under a real walk: `mshare-walk` has a processor read and write by them.

What walks them is a virtual machine's processor, so it matters how the hypervisor does that. With
nested paging the processor itself reads the tables. With shadow paging the hypervisor does, makes
tables of its own of them, and sets accessed and dirty bits as a processor would.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msharefs
from msharefs import installed, proc

from . import head

if TYPE_CHECKING:
    from collections.abc import Callable

KVM = Path("/dev/kvm")
SAMPLE = 64
"""Pages that each address space visits, but for the first, which visits all."""
_MODULES = Path("/sys/module")
_NESTED = (("kvm_intel", "ept"), ("kvm_amd", "npt"))
_NEEDED = (
    "a real walk needs KVM: a processor with virtualization and the module kvm_intel or kvm_amd, "
    "and inside a virtual machine one that permits machines in it"
)
_SAYS = {
    errno.ENXIO: _NEEDED,
    errno.EOVERFLOW: "guest-physical addresses of this KVM have less than 48 bits, and the "
    "region's data begin at 2^47",
    errno.ENODATA: "no page of it has an entry: let a program touch some first",
    errno.EBUSY: "it is changed all the time, or a change of it does not end: try again later",
}


def paging() -> dict[str, Any]:
    """How this machine's hypervisor has guest page tables walked."""
    present = [path.name for path in _MODULES.glob("kvm_*")]
    nested = False
    for module, parameter in _NESTED:
        path = _MODULES / module / "parameters" / parameter
        nested = nested or (path.is_file() and path.read_text().strip() in ("Y", "1"))
    return {
        "kind": "nested" if nested else "shadow",
        "by": sorted(present),
        "in_virtual_machine": "hypervisor" in " ".join(proc.cpuinfo("flags")).split(),
    }


def check_kvm() -> None:
    """OSError with a sentence if there is no KVM for us."""
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise PermissionError(
            error.errno, f"{KVM}: may not be opened by you: be of its group, or root"
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"{KVM}: {os.strerror(error.errno or 0)}: {_NEEDED}") from None


def run(
    path: str, spaces: int, *, check: bool, wait_seconds: float, running: Callable[[], None]
) -> dict[str, Any]:
    """Walks the tables of the region at `path`; a document of what was met there.

    With `check` every space visits every page. With `wait_seconds` the spaces go on until the
    region is changed, or for that time; `running` is called when they are about to. OSError with a
    sentence.
    """
    check_kvm()
    with msharefs.open(path) as region:
        region.stat()  # pages that Linux has filled get their entries
    started = head.head()
    arguments = [
        str(spaces),
        str(SAMPLE),
        "all" if check else "some",
        str(int(wait_seconds * 1000)),
    ]
    with subprocess.Popen(
        [installed.walk(), path, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said: dict[str, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            if said.get("running"):
                running()
    if not said.get("ok"):
        code = said.get("errno", errno.EIO)
        reason = _SAYS.get(code, said.get("error", "mshare-walk has ended"))
        raise OSError(code, f"{path}: {reason}")
    found = _document(said, started)
    found["passed"] = passed(found, check=check, waited=wait_seconds > 0)
    return {"region": path, **found}


def _document(said: dict[str, Any], started: dict[str, str]) -> dict[str, Any]:
    turns = [
        {**each, "private": None if each["switch"] == "one pcid" else each["private"]}
        for each in said["turns"]
    ]
    timed = {"pages": said["timed_pages"], "has_pcid": bool(said["has_pcid"]), "turns": turns}
    return {
        **started,
        "paging": paging(),
        "spaces": said["spaces"],
        "pages": said["pages"],
        "left_out_entries": said["left_out"],
        "visited_pages": said["visited"],
        "link_faults": {
            "all": said["links"], "least": said["links_least"], "most": said["links_most"],
        },
        "upper_tables": said["upper_tables"],
        "refused": said["refused"],
        "wrong": {
            "values": said["wrong"], "faults": said["faulted"], "accesses": said["allowed"],
        },
        "accessed": {"before": said["accessed_before"], "after": said["accessed_after"]},
        "dirty": {"before": said["dirty_before"], "after": said["dirty_after"]},
        "unmarked_pages": said["unmarked"],
        "changes": said["changes"],
        "gone_pages": said["gone"],
        "seen_by_spaces": said["seen_by"],
        "cycles_a_load": timed if timed["pages"] else None,
    }  # fmt: skip


def passed(found: dict[str, Any], *, check: bool, waited: bool) -> bool:
    """Whether everything was as the tables have it."""
    links = found["link_faults"]
    return (
        not any(found["wrong"].values())
        and 1 <= links["least"] <= links["most"] <= found["upper_tables"]
        and not (check and found["unmarked_pages"])
        and not (waited and found["changes"] and found["seen_by_spaces"] != found["spaces"])
    )
