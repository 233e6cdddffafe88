"""List what the billing layer took of usage, and no invoice asks for: for a subscription ended.

It hears of an end before we do, and takes what is sent until then: a cancellation's webhook can be
late, and the emitter relies for an hour on what it was told. What was taken stays taken: it is
listed with its reason, and never sent again, not even when the customer returns.

Cancelled at once, a subscription may also end without an invoice for its last period (Stripe's
default): what was taken of that is listed as a whole, until an invoice asks for it after all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from meterline.domain.emission import (
    AFTER_END,
    PERIOD_NOT_INVOICED,
    EmissionDue,
    HourDue,
    Lapse,
    Problem,
)
from meterline.domain.measuring import HOUR, floor_hour
from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.periods import Period
from meterline.domain.sending import Progress, after_end_identifier, broken_off_identifier
from meterline.domain.subscriptions import find_gaps
from meterline.domain.times import format_time
from meterline.domain.usage import LedgerEntry
from meterline.ports import (
    CountedHours,
    EmissionStore,
    EventsInTime,
    SentUsage,
    SubscriptionLives,
    SubscriptionRecords,
)

LOOK_BACK = timedelta(days=36)
"""Usage is taken for 35 days (Stripe's API reference, meter events); and a day to hear of it."""
_INVOICED_WITHIN = HOUR
"""An end's invoice is made with it; for so long after it, nothing is said to have none."""
_LOOKED_AT_FOR = timedelta(days=3)
"""Of a broken-off period that is listed: by then it is known of each send whether it arrived."""
_AHEAD = timedelta(days=1)
"""More than an event can be dated ahead of when it came."""
_CLOCK_SKEW = timedelta(minutes=10)
"""A batch may seem to be older than the events in it: their times are of other machines."""


class ListAfterEnd:
    """Looks at one customer; doing it again lists nothing twice.

    It is done when an end is heard of, and every hour after that: what was under way at that
    moment, or unknown and then found to have arrived, is met by a later look.
    """

    def __init__(
        self,
        accounts: SubscriptionRecords,
        subscriptions: SubscriptionLives,
        counted: CountedHours,
        ledger: EventsInTime,
        sent: SentUsage,
        store: EmissionStore,
        meters: Mapping[str, Meter],
    ) -> None:
        self._accounts = accounts
        self._subscriptions = subscriptions
        self._counted = counted
        self._ledger = ledger
        self._sent = sent
        self._store = store
        self._meters = meters

    def __call__(self, customer: str, now: datetime) -> int:
        """How many events (or hours) are listed by this call.

        Raises `BillingUnavailableError` and `StorageUnavailableError`.
        """
        found = self._accounts.get_customer(customer)
        known = self._accounts.get_subscription(customer)
        if found is None or found.billing_customer is None or known is None:
            return 0
        # To the end of this hour: what is sent may be dated now.
        start, end = floor_hour(now - LOOK_BACK), floor_hour(now) + HOUR
        if known.ended_at is not None and known.ended_at >= start:
            # A year that was broken off is looked at as a whole.
            start = min(start, floor_hour(known.current.start))
        if known.ended_at is None and known.metered_item is not None:
            # From there on it is billed: only what was used between two subscriptions is not.
            end = min(end, known.started_at)
        if end <= start:
            return 0
        used = {
            meter: hours
            for name, meter in self._meters.items()
            if (hours := self._counted.hours_between(customer, name, start, end))
        }
        if not used:
            return 0
        gaps = find_gaps(self._subscriptions.lives_of(found.billing_customer), end)
        parts = self._subscriptions.list_uninvoiced(
            found.billing_customer, now - LOOK_BACK, now - _INVOICED_WITHIN
        )
        opened = sum(
            self._list_broken_off(customer, meter, part, now)
            for meter in self._meters.values()
            for part in parts
        )
        return opened + sum(
            self._look_at(customer, meter, hours, gap, now)
            for meter, hours in used.items()
            for gap in gaps
        )

    def _look_at(
        self,
        customer: str,
        meter: Meter,
        hours: Mapping[datetime, int],
        gap: Period,
        now: datetime,
    ) -> int:
        touched = [hour for hour in hours if hour < gap.end and gap.start < hour + HOUR]
        if not touched:
            return 0
        start, end = max(gap.start, min(touched)), min(gap.end, max(touched) + HOUR)
        entries = [
            entry
            for entry in self._ledger.events_between(customer, start, end)
            if entry.meter == meter.id and entry.quantity
        ]
        if not entries:
            return 0
        if meter.emission is EmissionMode.HOURLY:
            return self._list_hours(customer, meter, hours, gap, entries, now)
        return self._list_events(customer, meter, gap, entries, now)

    def _list_events(
        self,
        customer: str,
        meter: Meter,
        gap: Period,
        entries: Sequence[LedgerEntry],
        now: datetime,
    ) -> int:
        names = [entry.key.identifier for entry in entries]
        listed = self._sent.find_listed(customer, meter.id, names)
        missing = {name for name in names if name not in listed}
        if not missing:
            return 0
        received = [entry.received_at for entry in entries if entry.key.identifier in missing]
        opened = 0
        for batch in self._sent.batches_since(customer, meter.id, min(received) - _CLOCK_SKEW):
            for each in batch.list_entries():
                if each.progress is Progress.SENT and each.entry.identifier in missing:
                    opened += self._open(each.due, gap, *each.entry, now)
        return opened

    def _list_hours(
        self,
        customer: str,
        meter: Meter,
        hours: Mapping[datetime, int],
        gap: Period,
        entries: Sequence[LedgerEntry],
        now: datetime,
    ) -> int:
        """An hour's total is sent as a whole. What was sent of it counts first for what was used
        before the end; what was not sent is on its way, or listed by itself."""
        after: Counter[datetime] = Counter()
        for entry in entries:
            after[floor_hour(entry.at)] += meter.to_sub_units(entry.quantity)
        opened = 0
        for hour, sub_units in after.items():
            due = HourDue(customer, meter.id, hour)
            sent = self._store.load_hour(due).sent_sub_units
            if sent is None:
                continue
            taken = min(sub_units, sub_units - (hours.get(hour, 0) - sent))
            name = after_end_identifier(customer, meter.id, hour)
            listed = self._sent.find_listed(customer, meter.id, [name])
            if taken > 0 and listed.get(name) != taken:
                at_s = int(max(hour, gap.start).timestamp())
                opened += self._open(due, gap, name, at_s, taken, now)
        return opened

    def _list_broken_off(self, customer: str, meter: Meter, part: Period, now: datetime) -> int:
        """One entry for all of it: a period may have millions of events."""
        name = broken_off_identifier(part)
        listed = self._sent.find_listed(customer, meter.id, [name]).get(name)
        if listed is not None and part.end + _LOOKED_AT_FOR < now:
            return 0
        if meter.emission is EmissionMode.HOURLY:
            first, end = floor_hour(part.start), floor_hour(part.end) + HOUR
            hours = self._counted.hours_between(customer, meter.id, first, end)
            sent = sum(self._sent_of_hour(customer, meter, hour, part) for hour in hours)
        else:
            sent = sum(
                each.entry.sub_units
                for batch in self._sent.batches_since(customer, meter.id, part.start - _AHEAD)
                for each in batch.list_entries()
                if each.progress is Progress.SENT
                and datetime.fromtimestamp(each.entry.at_s, UTC) in part
            )
        if sent == (listed or 0):
            return 0
        message = (
            f"taken, and on no invoice: the subscription was cancelled at {format_time(part.end)}, "
            f"without an invoice for its usage since {format_time(part.start)}"
        )
        at_s = int(part.start.timestamp())
        problem = Problem(Lapse.LATE, PERIOD_NOT_INVOICED, message, name, at_s, sent)
        due = HourDue(customer, meter.id, floor_hour(part.start))
        return self._store.open_problem(due, problem, now)

    def _sent_of_hour(self, customer: str, meter: Meter, hour: datetime, part: Period) -> int:
        """What was sent of an hour counts for what was used first of it."""
        if part.end <= hour or hour + HOUR <= part.start:
            return 0
        sent = self._store.load_hour(HourDue(customer, meter.id, hour)).sent_sub_units
        if sent is None or (part.start <= hour and hour + HOUR <= part.end):
            return sent or 0
        before = inside = 0
        for entry in self._ledger.events_between(customer, hour, min(hour + HOUR, part.end)):
            if entry.meter == meter.id and entry.at < part.start:
                before += meter.to_sub_units(entry.quantity)
            elif entry.meter == meter.id:
                inside += meter.to_sub_units(entry.quantity)
        return min(inside, max(0, sent - before))

    def _open(
        self,
        due: EmissionDue,
        gap: Period,
        identifier: str,
        at_s: int,
        sub_units: int,
        now: datetime,
    ) -> bool:
        message = f"taken, and on no invoice: the subscription ended at {format_time(gap.start)}"
        problem = Problem(Lapse.LATE, AFTER_END, message, identifier, at_s, sub_units)
        return self._store.open_problem(due, problem, now)
