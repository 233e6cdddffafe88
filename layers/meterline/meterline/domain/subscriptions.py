"""Subscriptions: what the billing layer says of a customer's plan and periods, as last heard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from meterline.domain.periods import Cycle, Interval, Period, Timeline

MAX_PAST = 36
"""Past periods that are remembered as they were; older ones follow from the anchor."""

_UNBILLED = frozenset({"canceled", "incomplete", "incomplete_expired", "paused"})


@dataclass(frozen=True, slots=True)
class Life:
    """From when to when a subscription bills what is used; `end` is None while it goes on."""

    start: datetime
    end: datetime | None


def find_gaps(lives: Iterable[Life], until: datetime) -> list[Period]:
    """The time up to `until` in which none of them bills any more, or not yet again."""
    gaps = []
    ended_at: datetime | None = None
    for life in sorted(lives, key=lambda life: life.start):
        if ended_at is not None and ended_at < min(life.start, until):
            gaps.append(Period(ended_at, min(life.start, until)))
        if life.end is None:
            return gaps
        ended_at = max(life.end, ended_at or life.end)
    if ended_at is not None and ended_at < until:
        gaps.append(Period(ended_at, until))
    return gaps


@dataclass(frozen=True, slots=True)
class Subscription:
    """One customer's subscription. Times are UTC and whole seconds but for `synced_at`.

    `status` is the billing layer's own word. `past` are periods that were current when we heard of
    the subscription before, oldest first.
    """

    id: str
    status: str
    plan: str | None
    """The plan that its prices belong to; None when none of them is of our catalog."""
    currency: str
    prices: tuple[str, ...]
    metered_item: str | None
    meter: str | None
    """The meter that the metered item bills."""
    current: Period
    anchor: datetime
    interval: Interval
    interval_count: int
    started_at: datetime
    cancel_at: datetime | None
    ended_at: datetime | None
    trial_start: datetime | None
    trial_end: datetime | None
    synced_at: datetime
    """When the billing layer was asked."""
    past: tuple[Period, ...] = ()
    metered_since: datetime | None = None
    """From when the metered item counts; None when it was there from the start."""
    metered_price: str | None = None

    @property
    def timeline(self) -> Timeline:
        """Its periods: the current one as told, then the remembered ones, the trial, the rest."""
        told = [self.current, *reversed(self.past)]
        if self.trial_start is not None and self.trial_end is not None:
            told.append(Period(self.trial_start, self.trial_end))
        return Timeline(
            Cycle(self.anchor, self.interval, self.interval_count),
            min(self.started_at, self.current.start),
            self.ends_at,
            tuple(told),
        )

    @property
    def ends_at(self) -> datetime | None:
        """When it ended or is known to end."""
        return self.ended_at or self.cancel_at

    @property
    def is_billed(self) -> bool:
        """Whether it bills anything at present."""
        return self.status not in _UNBILLED

    def period_at(self, at: datetime) -> Period | None:
        """The billing period that contains `at`; None outside of the subscription's life."""
        return self.timeline.period_at(at)

    def is_trial(self, period: Period) -> bool:
        """Whether the period lies in the trial: its usage is on no invoice."""
        return self.trial_end is not None and period.end <= self.trial_end


def follow(
    before: Subscription | None, heard: Subscription, changed_at: datetime | None = None
) -> Subscription:
    """What is heard now, with the periods remembered that were current before.

    A change of the anchor in mid-period ends the period that was current at that moment. Another
    price on the same metered item counts from the change on, as an item of its own does, but the
    billing layer does not keep when that was: it is `changed_at`, as its event said, or else when
    it was heard. Another subscription starts a memory of its own.
    """
    if before is None or before.id != heard.id:
        return heard
    heard = replace(heard, metered_since=_since(before, heard, changed_at))
    past = before.past
    if before.current != heard.current:
        closed = before.current.clip(None, heard.current.start)
        if closed is not None:
            past = (*past, closed)
    # What was remembered and lies in the current period has been told anew.
    kept = [period.clip(None, heard.current.start) for period in past]
    return replace(heard, past=tuple(period for period in kept if period is not None)[-MAX_PAST:])


def _since(
    before: Subscription, heard: Subscription, changed_at: datetime | None
) -> datetime | None:
    if heard.metered_item is None or heard.metered_item != before.metered_item:
        return heard.metered_since
    is_repriced = before.metered_price not in (None, heard.metered_price)
    if is_repriced and before.current == heard.current:
        at = (changed_at or heard.synced_at).replace(microsecond=0)
        return min(max(at, heard.current.start), heard.synced_at.replace(microsecond=0))
    known = [each for each in (before.metered_since, heard.metered_since) if each is not None]
    return max(known, default=None)
