"""Authorizations: leave to spend, held inside a budget that it can never carry past its limit.

A budget is one customer's use of one meter in one period: what is counted plus what is held. All
amounts are whole sub-units of the meter.

What becomes of a hold:
- the first event that names it settles it: the hold goes, what was really used counts;
- a lease is drawn down instead, event by event, and stays until it is used up, released or expired;
- a lease that is closed says how many events there will be: with the last of them the rest goes;
- release and expiry give it back; whatever names it afterwards counts like an event without one;
- an event that names an authorization of another customer or meter settles nothing, and counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from meterline.domain.periods import Period

MAX_HOLDS = 1_000
"""Open authorizations of one customer and meter: they share an item of at most 400 KB."""
MAX_SETTLED = 100
"""Holds that one write can settle: an expression of DynamoDB has at most 4 KB."""
DEFAULT_LIFE = timedelta(minutes=15)
"""How long a hold stands: longer than a model call, its report and the count of it take."""
MAX_LIFE = timedelta(hours=24)

SLOT_S = 300
"""Seconds of one slot of a budget's pace."""
PACE_SLOTS = 13
"""Slots that the last hour reaches into."""


class InvalidAuthorizationError(ValueError):
    """A text that cannot be the id of an authorization."""


@dataclass(frozen=True, slots=True)
class AuthorizationId:
    """An authorization's id: it says where its hold is kept. `serial` makes it the only one."""

    customer: str
    meter: str
    serial: str

    @property
    def text(self) -> str:
        """The id as callers see it. No part holds a tilde, which a URL takes as it is."""
        return f"{self.customer}~{self.meter}~{self.serial}"

    @classmethod
    def parse(cls, text: str) -> AuthorizationId:
        """Read an id written by `text`, or `InvalidAuthorizationError`."""
        parts = text.split("~")
        if len(parts) != 3 or not all(parts):
            raise InvalidAuthorizationError(text)
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held for one authorization until `expires_at_s`."""

    sub_units: int
    expires_at_s: int
    is_lease: bool = False
    drawn: int = 0
    """Events that a lease was drawn down by."""
    closes_at: int | None = None
    """With so many events the rest of a lease goes; None while it is open."""

    @property
    def is_over(self) -> bool:
        """Whether all events of a closed lease have come."""
        return self.closes_at is not None and self.drawn >= self.closes_at

    @property
    def text(self) -> str:
        """As it is kept: `<sub-units>:<expiry>`, of a lease `:L:<drawn>`, closed `:<events>`."""
        text = f"{self.sub_units}:{self.expires_at_s}"
        if self.is_lease:
            text += f":L:{self.drawn}"
        return text if self.closes_at is None else f"{text}:{self.closes_at}"

    @classmethod
    def parse(cls, text: str) -> Hold:
        """Read a hold written by `text`."""
        sub_units, expires_at_s, *kind = text.split(":")
        return cls(int(sub_units), int(expires_at_s), bool(kind), *map(int, kind[1:]))


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it was read. Without a `period` it only keeps pace and counts changes."""

    period: Period | None = None
    used: int = 0
    """Counted in the period."""
    committed: int = 0
    """Counted and held together: what a limit is held against."""
    holds: Mapping[str, Hold] = field(default_factory=dict)
    revision: int = 0
    """How often projection changed it."""
    pace: Mapping[int, int] = field(default_factory=dict)
    """Sub-units by slot: the seconds since 1970, divided by `SLOT_S`."""

    def expired(self, now: datetime) -> Mapping[str, Hold]:
        """The holds whose time is over."""
        now_s = now.timestamp()
        return {serial: hold for serial, hold in self.holds.items() if hold.expires_at_s <= now_s}

    def room(self, stop_sub_units: int) -> int:
        """What may still be held below a limit."""
        return max(0, stop_sub_units - self.committed)


class Use(NamedTuple):
    """What a budget needs of an event."""

    at_s: int
    sub_units: int
    serial: str | None
    """Of the authorization that it settles."""


@dataclass(frozen=True, slots=True)
class BudgetChange:
    """What counting some events does to a budget, given that its period and holds are as read."""

    used: int
    committed: int
    settled: Mapping[str, Hold]
    """Holds that go, as they were."""
    drawn: Mapping[str, tuple[Hold, Hold]]
    """Leases that go on, before and after."""
    pace: Mapping[int, int]


def find_serial(authorization: str | None, customer: str, meter: str) -> str | None:
    """The serial of an authorization of this customer and meter; None for any other text."""
    if authorization is None:
        return None
    try:
        found = AuthorizationId.parse(authorization)
    except InvalidAuthorizationError:
        return None
    return found.serial if (found.customer, found.meter) == (customer, meter) else None


def count_uses(budget: Budget, uses: Iterable[Use]) -> BudgetChange:
    """Count events: each once, its hold given back, and only those of the period as used.

    A hold counts from its own period on: the room that it took is given back even when its event
    is dated before the period began.
    """
    used = given_back = 0
    open_holds = dict(budget.holds)
    pace: dict[int, int] = {}
    for use in uses:
        slot = use.at_s // SLOT_S
        pace[slot] = pace.get(slot, 0) + use.sub_units
        if _is_within(budget.period, use.at_s):
            used += use.sub_units
        hold = open_holds.get(use.serial) if use.serial is not None else None
        if hold is None or use.serial is None:
            continue
        left = hold.sub_units - max(use.sub_units, 0) if hold.is_lease else 0
        rest = replace(hold, sub_units=left, drawn=hold.drawn + 1)
        if left > 0 and not rest.is_over:
            given_back += hold.sub_units - left
            open_holds[use.serial] = rest
        else:
            given_back += hold.sub_units
            del open_holds[use.serial]
    return BudgetChange(
        used,
        used - given_back,
        {serial: hold for serial, hold in budget.holds.items() if serial not in open_holds},
        {
            serial: (hold, open_holds[serial])
            for serial, hold in budget.holds.items()
            if open_holds.get(serial, hold) != hold
        },
        pace,
    )


def _is_within(period: Period | None, at_s: int) -> bool:
    if period is None:
        return False
    return period.start.timestamp() <= at_s < period.end.timestamp()
