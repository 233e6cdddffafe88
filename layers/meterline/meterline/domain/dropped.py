"""Usage that the billing layer took at first and dropped later, as its error reports tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DroppedUsage:
    """One sample of a report: the identifier that was sent, and why it was dropped."""

    identifier: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class DropReport:
    """What one report says. It names samples only: `count` may be far more than `samples`."""

    id: str
    billing_meter: str | None
    count: int
    codes: Sequence[str]
    samples: Sequence[DroppedUsage]


def read_identifier(identifier: str | None, idempotency_key: str | None) -> str | None:
    """The identifier that a report's sample is about, if it was one of ours.

    A report may name the identifier, the idempotency key or both (Stripe's OpenAPI document); our
    keys begin with the identifier.
    """
    named = identifier or (idempotency_key or "").partition("-")[0]
    return named if named.startswith(("ml_", "mlh_")) else None
