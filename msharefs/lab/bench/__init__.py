"""The benchmark: what msharefs costs and saves, beside what programs use today, in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .budget import Budget
from .pagetables import Clients, PageTables
from .rates import AttachDetach, Calls, Metadata
from .revoke import Protect, Unmap
from .touch import FirstTouch, Fork, Populated, Steady

if TYPE_CHECKING:
    from .scenario import Scenario

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        FirstTouch(), Populated(), Steady(), Fork(), Unmap(), Protect(), AttachDetach(), Calls(),
        Metadata(), PageTables(), Clients(), Budget(),
    )
}  # fmt: skip
"""All scenarios by name, in the order they are run."""
