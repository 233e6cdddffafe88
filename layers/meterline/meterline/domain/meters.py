"""Meters: what is counted, in which unit, and how it is told to the billing layer."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from enum import StrEnum

_EXACT = Context(prec=100)
"""A quantity that a caller writes has at most 80 digits: nothing too fine is to be rounded away."""


class FinerThanSubUnitError(ValueError):
    """A quantity is not a whole number of the meter's sub-units."""


class EmissionMode(StrEnum):
    """How a meter's usage is sent. Fixed for the life of the meter at the billing layer."""

    EVENT = "event"
    HOURLY = "hourly"


class Rating(StrEnum):
    """How a provider's reported usage becomes a quantity of a meter."""

    RATE_CARD = "rate_card"
    TOKENS = "tokens"
    """All kinds of tokens, added."""
    NONE = "none"
    """Not at all: only a reported quantity counts."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter; `sub_units` whole numbers at the billing layer make one unit of it."""

    id: str
    unit: str
    sub_units: int
    emission: EmissionMode
    event_name: str
    """Its name at the billing layer."""
    display_name: str
    rating: Rating = Rating.NONE

    def to_sub_units(self, quantity: Decimal) -> int:
        """The quantity as the billing layer's integer, or FinerThanSubUnitError."""
        scaled = _EXACT.multiply(quantity, self.sub_units)
        whole = int(scaled)
        if whole != scaled:
            raise FinerThanSubUnitError(f"{quantity} {self.unit} is finer than 1/{self.sub_units}")
        return whole

    def from_sub_units(self, sub_units: int) -> Decimal:
        """The billing layer's integer as a quantity in the meter's own unit."""
        return Decimal(sub_units) / self.sub_units
