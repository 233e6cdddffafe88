"""Take reports of usage: judge each event by itself and write the good ones to the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import blake2b

from meterline.domain.meters import Meter, Rating
from meterline.domain.quantities import parse_quantity
from meterline.domain.rating import count_tokens
from meterline.domain.times import parse_time
from meterline.domain.usage import MAX_AHEAD, EventKey, LedgerEntry
from meterline.errors import RejectedEventError, StorageUnavailableError
from meterline.ports import Customers, Ledger, RateCards, Recorded
from meterline.schemas.events import EventData, UsageEvent, read_event
from meterline.schemas.names import MAX_ID_LENGTH

MAX_AGE = timedelta(days=731)
"""An older event is a mistake of units or of the epoch, not late usage."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why the event at `index` of the call was not taken, with a stable `code`."""

    index: int
    id: str | None
    code: str
    message: str


@dataclass(slots=True)
class UsageReport:
    """What became of the events of one call.

    `undecided` events were perhaps not written, because the storage did not answer in time: the
    caller sends the whole call again, and those that were written come back as duplicates.
    """

    accepted: int = 0
    duplicates: int = 0
    ignored: int = 0
    undecided: int = 0
    rejected: list[Rejection] = field(default_factory=list)


class ReportUsage:
    """The job of `POST /v1/usage`."""

    def __init__(
        self,
        ledger: Ledger,
        customers: Customers,
        meters: Mapping[str, Meter],
        rate_cards: RateCards,
    ) -> None:
        self._ledger = ledger
        self._customers = customers
        self._meters = meters
        self._rate_cards = rate_cards

    def __call__(self, raw_events: Sequence[object], now: datetime) -> UsageReport:
        """Record the events of one call and say what became of each."""
        report = UsageReport()
        entries: list[tuple[int, LedgerEntry]] = []
        events = self._read(raw_events, report)
        known = self._customers.known({event.subject for _, event in events})
        undated: list[tuple[Rejection, UsageEvent]] = []
        for index, event in events:
            try:
                entries.append((index, self._rate(event, known, now)))
            except RejectedEventError as error:
                rejection = Rejection(index, event.id, error.code, str(error))
                if event.time is None and event.data.usage is not None:
                    undated.append((rejection, event))
                else:
                    report.rejected.append(rejection)
        while entries:
            entries = self._record(entries, report)
        if undated:
            self._recognise(undated, report)
        report.rejected.sort(key=lambda rejection: rejection.index)
        return report

    def _record(
        self, entries: Sequence[tuple[int, LedgerEntry]], report: UsageReport
    ) -> list[tuple[int, LedgerEntry]]:
        """Write the first entry of each key and settle the rest by it; what is still open."""
        firsts: dict[str, tuple[int, LedgerEntry]] = {}
        repeats = []
        for indexed in entries:
            if firsts.setdefault(indexed[1].key.text, indexed) is not indexed:
                repeats.append(indexed)
        outcomes = self._ledger.record([entry for _, entry in firsts.values()])
        for (index, entry), outcome in zip(firsts.values(), outcomes, strict=True):
            _count(report, index, entry, outcome)
        if not repeats:
            return []
        open_entries = []
        settled = dict(zip(firsts, outcomes, strict=True))
        for index, entry in repeats:
            outcome = settled[entry.key.text]
            is_same = entry.digest == firsts[entry.key.text][1].digest
            if outcome is Recorded.CONFLICT and not is_same:
                # Neither is what the first of them met: it may be what the ledger holds.
                open_entries.append((index, entry))
            elif outcome is Recorded.ACCEPTED or outcome is Recorded.DUPLICATE:
                _count(report, index, entry, Recorded.DUPLICATE if is_same else Recorded.CONFLICT)
            else:
                _count(report, index, entry, outcome)
        return open_entries

    def _recognise(
        self, undated: Sequence[tuple[Rejection, UsageEvent]], report: UsageReport
    ) -> None:
        """Tell retries among events that bear no time and cannot be rated: the rate card has
        changed since they were taken, and they have not."""
        keys = {_key(event).text for _, event in undated}
        try:
            held = self._ledger.list_digests(sorted(keys))
        except StorageUnavailableError:
            report.undecided += len(undated)
            return
        for rejection, event in undated:
            if held.get(_key(event).text) == _digest(event.data, None):
                report.duplicates += 1
            else:
                report.rejected.append(rejection)

    def _read(
        self, raw_events: Sequence[object], report: UsageReport
    ) -> list[tuple[int, UsageEvent]]:
        events = []
        for index, raw in enumerate(raw_events):
            try:
                event = read_event(raw)
            except RejectedEventError as error:
                report.rejected.append(Rejection(index, _id_of(raw), error.code, str(error)))
                continue
            if event.data.cached:
                # A cache hit cost nothing, so it is billed to nobody.
                report.ignored += 1
            else:
                events.append((index, event))
        return events

    def _rate(self, event: UsageEvent, known: set[str], now: datetime) -> LedgerEntry:
        if event.subject not in known:
            raise RejectedEventError("unknown_customer", f"There is no customer {event.subject}.")
        data = event.data
        meter = self._meters.get(data.meter)
        if meter is None:
            raise RejectedEventError("unknown_meter", f"There is no meter {data.meter}.")
        at = _read_time(event.time, now)
        if data.quantity is not None:
            if data.usage is not None:
                raise RejectedEventError(
                    "ambiguous_quantity", "Send data.usage or data.quantity, not both."
                )
            quantity, rate_card = parse_quantity(data.quantity, meter), None
        elif data.usage is None:
            raise RejectedEventError("missing_quantity", "data.usage or data.quantity is needed.")
        elif meter.rating is Rating.RATE_CARD:
            if data.provider is None or data.model is None:
                raise RejectedEventError(
                    "missing_field", "data.provider and data.model are needed to rate data.usage."
                )
            card = self._rate_cards.at(at)
            quantity = card.credits(data.provider, data.model, data.usage, meter)
            rate_card = card.version
        elif meter.rating is Rating.TOKENS:
            quantity, rate_card = count_tokens(data.usage, meter), None
        else:
            raise RejectedEventError(
                "missing_quantity", f"The meter {meter.id} takes data.quantity only."
            )
        return LedgerEntry(
            key=_key(event),
            at=at,
            meter=meter.id,
            quantity=quantity,
            digest=_digest(data, None if data.quantity is None else quantity),
            received_at=now,
            action=data.action,
            user=data.user,
            provider=data.provider,
            model=data.model,
            usage=data.usage,
            rate_card=rate_card,
            authorization=data.authorization,
            tier=data.tier,
            status=data.status,
            response_id=data.response_id,
        )


def _count(report: UsageReport, index: int, entry: LedgerEntry, outcome: Recorded) -> None:
    if outcome is Recorded.ACCEPTED:
        report.accepted += 1
    elif outcome is Recorded.DUPLICATE:
        report.duplicates += 1
    elif outcome is Recorded.UNDECIDED:
        report.undecided += 1
    else:
        report.rejected.append(_conflict(index, entry))


def _conflict(index: int, entry: LedgerEntry) -> Rejection:
    return Rejection(
        index,
        entry.key.id,
        "conflict",
        f"An event {entry.key.id} of {entry.key.source} is known with other content; it stays.",
    )


def _read_time(text: str | None, now: datetime) -> datetime:
    if text is None:
        return now.replace(microsecond=now.microsecond // 1000 * 1000)
    try:
        at = parse_time(text)
    except ValueError:
        raise RejectedEventError(
            "invalid_time", "time must be an RFC 3339 time such as 2026-11-22T06:00:00Z."
        ) from None
    if at > now + MAX_AHEAD:
        raise RejectedEventError("time_in_future", "time is more than 5 minutes ahead of ours.")
    if at < now - MAX_AGE:
        raise RejectedEventError("time_too_old", f"time is more than {MAX_AGE.days} days ago.")
    return at


def _key(event: UsageEvent) -> EventKey:
    return EventKey(event.subject, event.source, event.id)


def _digest(data: EventData, quantity: Decimal | None) -> bytes:
    """A digest of what was used, but not of when: a retry may be stamped anew.

    A reported `quantity` counts by its value: 5 is 5.0.
    """
    usage = data.usage and sorted(item for item in data.usage.items() if item[1])
    content = (
        data.meter,
        data.user,
        data.action,
        data.provider,
        data.model,
        usage,
        None if quantity is None else _write_plain(quantity),
        data.authorization,
        data.tier,
        data.status,
        data.response_id,
    )
    return blake2b(repr(content).encode(), digest_size=16).digest()


def _write_plain(quantity: Decimal) -> str:
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _id_of(raw: object) -> str | None:
    found = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(found, str) or len(found) > MAX_ID_LENGTH:
        return None
    # It may hold half a surrogate pair, which no answer can.
    return found.encode(errors="replace").decode()
