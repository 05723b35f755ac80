"""Whether a processor can walk a region's tables here (`msharefs lab walk`)."""

from __future__ import annotations

import re

from msharefs import proc
from msharefs.lab import walk


def why_not() -> str:
    """The sentence that a walk must end in here; empty: it must work."""
    try:
        walk.check_kvm()
    except OSError as error:
        return str(error.strerror)
    bits = re.search(r"(\d+) bits physical", " ".join(proc.cpuinfo("address sizes")))
    return "" if bits and int(bits[1]) >= 48 else "guest-physical addresses of this KVM have less"


SAID = why_not()
KVM = not SAID
