"""Meter events as the account keeps them, and how a meter adds them up.

A raw meter counts all events. A meter with `event_time_window` counts, per customer, only the
most recent event of each UTC hour or day; of two with one timestamp the later received
(Stripe's documentation, pre-aggregated meter events).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

DEDUPE_S = 24 * 3600
"""A repeated identifier is refused for a rolling 24 hours (API reference, meter events)."""

_HOUR_S = 3600
WINDOW_S = {"hour": _HOUR_S, "day": 24 * _HOUR_S}


@dataclass(slots=True)
class MeterEvent:
    """One call to the meter events API, whatever came of it."""

    sequence: int
    identifier: str
    event_name: str
    customer: str
    value: int | None
    timestamp: int
    received_at: float
    outcome: str
    """accepted, duplicate, refused, reported (dropped later, by thin event) or cancelled."""
    code: str | None = None
    idempotency_key: str | None = None
    raw_value: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the control API."""
        return asdict(self)


@dataclass(slots=True)
class _Series:
    """The counted events of one meter and customer, by UTC hour."""

    hours: dict[int, list[MeterEvent]] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)

    def add(self, event: MeterEvent) -> None:
        hour = event.timestamp // _HOUR_S
        self.hours.setdefault(hour, []).append(event)
        self.sums[hour] = self.sums.get(hour, 0) + (event.value or 0)

    def remove(self, event: MeterEvent) -> None:
        hour = event.timestamp // _HOUR_S
        self.hours[hour].remove(event)
        self.sums[hour] -= event.value or 0


def _present(series: _Series, start_s: int, end_s: int, width_s: int = _HOUR_S) -> list[int]:
    """The hours that hold events in any window of that width that the range touches."""
    low = start_s // width_s * width_s // _HOUR_S
    high = ((end_s - 1) // width_s + 1) * width_s // _HOUR_S
    return [hour for hour, events in series.hours.items() if events and low <= hour < high]


def _latest(event: MeterEvent) -> tuple[int, int]:
    return event.timestamp, event.sequence


class UsageBook:
    """Every meter event of the account, and the totals that meters make of them."""

    def __init__(self) -> None:
        self.log: list[MeterEvent] = []
        self._applied = 0
        self._known: dict[str, MeterEvent] = {}
        self._series: dict[tuple[str, str], _Series] = {}
        self.latest_s = 0
        """The latest timestamp of any counted event."""

    def find_identifier(self, identifier: str, now_s: float) -> MeterEvent | None:
        """The event that still holds this identifier, if it came within 24 hours."""
        event = self._known.get(identifier)
        if event is None or now_s - event.received_at >= DEDUPE_S:
            return None
        return event

    def record(self, event: MeterEvent) -> None:
        """Keep a call; an accepted one counts once it is applied."""
        self.log.append(event)
        if event.outcome in ("accepted", "reported"):
            self._known[event.identifier] = event

    def apply(self, received_until_s: float) -> None:
        """Let what was received up to a time be seen by summaries and invoices."""
        while self._applied < len(self.log):
            event = self.log[self._applied]
            if event.received_at > received_until_s:
                return
            self._applied += 1
            if event.outcome == "accepted":
                key = (event.event_name, event.customer)
                self._series.setdefault(key, _Series()).add(event)
                self.latest_s = max(self.latest_s, event.timestamp)

    def apply_all(self) -> None:
        """Let everything received so far be seen, as at finalisation."""
        self.apply(float("inf"))

    def cancel(self, event: MeterEvent) -> None:
        """Take an accepted event out of every total."""
        index = event.sequence
        event.outcome = "cancelled"
        if index < self._applied:
            self._series[event.event_name, event.customer].remove(event)

    def _counted(
        self, series: _Series, window: str | None, start_s: int, end_s: int
    ) -> Iterator[MeterEvent]:
        if window is None:
            for hour in _present(series, start_s, end_s):
                for event in series.hours[hour]:
                    if start_s <= event.timestamp < end_s:
                        yield event
            return
        width = WINDOW_S[window]
        windows = {hour * _HOUR_S // width for hour in _present(series, start_s, end_s, width)}
        for index in sorted(windows):
            hours = range(index * width // _HOUR_S, (index + 1) * width // _HOUR_S)
            events = [event for hour in hours for event in series.hours.get(hour, ())]
            if events:
                # The latest event stands for the window, and its own time says which period.
                last = max(events, key=_latest)
                if start_s <= last.timestamp < end_s:
                    yield last

    def total(
        self,
        event_name: str,
        customer: str,
        formula: str,
        window: str | None,
        start_s: int,
        end_s: int,
    ) -> int:
        """The meter's value for a customer from `start_s` up to but not including `end_s`."""
        series = self._series.get((event_name, customer))
        if series is None or end_s <= start_s:
            return 0
        if formula == "sum" and window is None:
            return self._raw_sum(series, start_s, end_s)
        events = list(self._counted(series, window, start_s, end_s))
        if formula == "count":
            return len(events)
        if formula == "last":
            return (max(events, key=_latest).value or 0) if events else 0
        return sum(event.value or 0 for event in events)

    @staticmethod
    def _raw_sum(series: _Series, start_s: int, end_s: int) -> int:
        total = 0
        for hour in _present(series, start_s, end_s):
            if hour * _HOUR_S >= start_s and (hour + 1) * _HOUR_S <= end_s:
                total += series.sums[hour]
            else:
                total += sum(
                    event.value or 0
                    for event in series.hours[hour]
                    if start_s <= event.timestamp < end_s
                )
        return total

    def spans(self, event_name: str, customer: str, start_s: int, end_s: int) -> list[int]:
        """The UTC hours in the range that hold any event, in order."""
        series = self._series.get((event_name, customer))
        if series is None:
            return []
        return sorted(
            hour
            for hour, events in series.hours.items()
            if events and start_s <= hour * _HOUR_S < end_s
        )
