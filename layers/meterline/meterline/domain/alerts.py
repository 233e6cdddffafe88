"""Alerts that an operator set up at the billing layer, when one of them goes off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TriggeredAlert:
    """What went off, in sub-units of the meter; `title` is the operator's own."""

    title: str
    event_name: str
    """The meter's name at the billing layer."""
    threshold_sub_units: int
    value_sub_units: int
