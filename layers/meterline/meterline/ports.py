"""What services need from outside, as small Protocols. Adapters keep them without inheriting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from meterline.errors import MeterlineError

if TYPE_CHECKING:
    # Not every function needs them, and every function imports this module when it starts.
    from meterline.domain.alerts import TriggeredAlert
    from meterline.domain.api_keys import ApiKey
    from meterline.domain.authorizations import Budget, Hold
    from meterline.domain.breaker import DayUse
    from meterline.domain.controls import Freeze, Lifting, Standing
    from meterline.domain.customers import Customer, User
    from meterline.domain.dropped import DroppedUsage, DropReport
    from meterline.domain.emission import (
        BatchDue,
        Billability,
        BillableUsage,
        BillingLimits,
        DeadLetters,
        EmissionBatch,
        EmissionDue,
        HourDue,
        Problem,
        SendOutcome,
    )
    from meterline.domain.invoice_checks import BillingInvoice, HoldReason, InvoiceCheck
    from meterline.domain.invoice_spikes import ComparedInvoice
    from meterline.domain.limits import Limits
    from meterline.domain.measuring import HourSplit, HourTotal
    from meterline.domain.messages import Message
    from meterline.domain.meters import Meter
    from meterline.domain.notifications import Channel, Notification
    from meterline.domain.overviews import BillingFacts, Overview, PastInvoice
    from meterline.domain.period_usage import Edge, UsageCounts
    from meterline.domain.periods import Period
    from meterline.domain.pricing import Plan
    from meterline.domain.projection import Checkpoint, Fence, Pair, TotalsStep
    from meterline.domain.rating import RateCard
    from meterline.domain.reconciliation import BatchRecord, Difference, HourKey, SentEntry
    from meterline.domain.sending import BatchSending, HourSending
    from meterline.domain.sessions import Viewer
    from meterline.domain.subscriptions import Life, Subscription
    from meterline.domain.usage import EventKey, LedgerEntry
    from meterline.domain.webhooks import Notice


class Recorded(Enum):
    """What became of an entry that was to be recorded."""

    ACCEPTED = auto()
    DUPLICATE = auto()
    CONFLICT = auto()
    """The key is known with another digest; the first entry stays."""
    UNDECIDED = auto()
    """No answer in time: it may have been written. Recording it again is safe."""


class RateCards(Protocol):
    """The rate cards, each from its own date on."""

    def at(self, moment: datetime) -> RateCard:
        """The card that rates an event of that time. Raises `StorageUnavailableError`."""
        ...


class Plans(Protocol):
    """The plans, each version from its own date on."""

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        """The plans by id that price a period which starts then, or `StorageUnavailableError`."""
        ...


class Ledger(Protocol):
    """The events table: append-only, and the only place that an answer depends on."""

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        """Write entries whose keys are distinct, each if its key is new; one outcome each."""
        ...

    def list_digests(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The digests of those of the keys that are taken, read strongly consistently."""
        ...


class Customers(Protocol):
    """Who is a customer."""

    def known(self, customers: Iterable[str]) -> set[str]:
        """Those of `customers` that exist."""
        ...


class CustomerAccounts(Protocol):
    """Customers, one by one."""

    def get_customer(self, customer: str) -> Customer | None:
        """One customer as it is now."""
        ...

    def put_customer(
        self, customer: str, changes: Mapping[str, str | None], now: datetime
    ) -> Customer:
        """Create a customer or change the named fields of one; a None takes a field away.

        Another `billing_customer` takes the subscription of the one before away with it. Raises
        `BillingCustomerTakenError`.
        """
        ...

    def list_customers(self, limit: int, after: str | None) -> Sequence[Customer]:
        """Up to `limit` customers in the order of their ids, from the first one behind `after`.

        A customer that was created a moment ago may not be in it yet.
        """
        ...

    def list_users(self, customer: str) -> Sequence[User]:
        """The customer's users, by id."""
        ...

    def put_users(self, customer: str, users: Sequence[User]) -> None:
        """Make these the customer's users. Not all at once: after a failure, call it again."""
        ...


class SubscriptionRecords(Protocol):
    """Subscriptions as they were last heard of, one for each customer."""

    def get_customer(self, customer: str) -> Customer | None:
        """One customer as it is now."""
        ...

    def get_subscription(self, customer: str) -> Subscription | None:
        """The customer's subscription as last heard, read strongly consistently."""
        ...

    def replace_subscription(
        self,
        customer: str,
        billing_customer: str,
        before: Subscription | None,
        after: Subscription | None,
    ) -> None:
        """Write `after` (None: take it away) in the place of `before`.

        Raises `SupersededError` when the record is no longer `before`, or the customer is no
        longer `billing_customer`: then nothing is written.
        """
        ...


class Subscriptions(Protocol):
    """What the billing layer says of subscriptions, now."""

    def of(self, billing_customer: str, now: datetime) -> Subscription | None:
        """The customer's subscription; None when it has none. `synced_at` is `now`.

        Raises `BillingUnavailableError`.
        """
        ...


class SubscriptionLives(Protocol):
    """When the billing layer bills usage at all, now."""

    def lives_of(self, billing_customer: str) -> Sequence[Life]:
        """Of every subscription that bills the customer's usage, or did.

        Raises `BillingUnavailableError`.
        """
        ...

    def list_uninvoiced(
        self, billing_customer: str, ended_from: datetime, ended_by: datetime
    ) -> Sequence[Period]:
        """What no invoice asks for of periods that a subscription's end broke off in that time.

        Raises `BillingUnavailableError`.
        """
        ...


class ApiKeys(Protocol):
    """The API keys, by their hashes."""

    def find(self, key_hash: str) -> ApiKey | None:
        """The key with that hash, revoked or not."""
        ...


class KeyCalls(Protocol):
    """How many calls each API key makes, counted by all processes together."""

    def add(self, key_hash: str, slot: int, calls: int, now: datetime) -> int:
        """Add calls to a slot of time; how many it has now."""
        ...


class CheckpointMovedError(MeterlineError):
    """The shard's checkpoint is not where it was expected: nothing of the step was counted."""


class NotPublishedError(MeterlineError):
    """The event bus did not take an event: it stays open, and is published by a later scan."""


class DeliveryFailedError(MeterlineError):
    """A channel did not take a message: it is to be tried again."""


class Totals(Protocol):
    """The counters that are derived from the ledger, and how far they are."""

    def checkpoint(self, shard: str) -> Checkpoint:
        """How far the shard is counted, read strongly consistently."""
        ...

    def apply(self, shard: str, expected: Checkpoint, step: TotalsStep) -> Checkpoint:
        """Count a step and move the checkpoint, all or nothing; the new checkpoint.

        Raises `CheckpointMovedError` when the checkpoint is no longer `expected`.
        """
        ...

    def fences(self, pairs: Iterable[Pair]) -> Mapping[Pair, Fence]:
        """Where the recounts of these stand, read strongly consistently, and what they counted."""
        ...

    def clear_pending(self, shard: str, checkpoint: Checkpoint) -> None:
        """Forget the hand-overs of `checkpoint`, unless it has moved since."""
        ...


class CountedEvents(Protocol):
    """Which events are counted, by their identifiers, read strongly consistently."""

    def list_batched(self, customer: str, meter: str) -> set[str]:
        """The events of all batches."""
        ...

    def list_unbatched(self, first: datetime, last: datetime) -> set[str]:
        """The events of all customers that streams counted without a batch, between the two."""
        ...

    def list_recounted(self, customer: str, meter: str) -> set[str]:
        """The events that recounts counted."""
        ...


class EmissionQueue(Protocol):
    """The way to the emitter: in order per customer and meter, at least once."""

    def send(self, dues: Sequence[EmissionDue], *, renewal: str) -> None:
        """Hand over; returns only when the queue has all of them.

        The queue may drop a repeated hand-over of a batch, and one of an hour with the same
        `renewal`: that names the change which made the hour due.
        """
        ...


class BillingLayer(Protocol):
    """Where the bill is made. What goes wrong there is an answer, never an exception."""

    @property
    def limits(self) -> BillingLimits:
        """What it takes, whatever the event says."""
        ...

    def send(self, usage: BillableUsage) -> SendOutcome:
        """Tell it of one use; calls for one customer and meter must not overlap."""
        ...

    def billable_from(self, billing_customer: str) -> Billability:
        """From when on usage of this customer still comes onto an invoice."""
        ...


class BillingCustomers(Protocol):
    """Which customer of the billing layer a customer is."""

    def billing_customer(self, customer: str) -> str | None:
        """Its id there, or None when it has none (or we do not know the customer)."""
        ...


class HourTotals(Protocol):
    """The totals, as far as the hourly mode reads them."""

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        """What the hour that starts at `hour` (UTC) holds, read strongly consistently."""
        ...


class EventsInTime(Protocol):
    """The ledger, as far as it is read by time."""

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterable[LedgerEntry]:
        """The customer's events with start <= at < end, in time order."""
        ...


class LedgerEntries(EventsInTime, Protocol):
    """The ledger, as far as it is read."""

    def find(self, key: EventKey) -> LedgerEntry | None:
        """One event by its key."""
        ...


class PeriodTotals(Protocol):
    """The totals, as far as periods are measured from them."""

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        """What the hour that starts at `hour` (UTC) holds."""
        ...

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        """What the hours from `start` up to and not including `end` hold; both on the hour."""
        ...

    def read_split(self, customer: str, meter: str, edge: datetime) -> HourSplit | None:
        """How the hour around `edge` was last found to be split by it."""
        ...

    def write_split(self, customer: str, meter: str, edge: datetime, split: HourSplit) -> None:
        """Remember how the hour around `edge` is split by it."""
        ...


class EmissionStore(Protocol):
    """What is to be sent, how far sending got, and what could not be billed.

    A save raises `SupersededError` when another run saved in between: its state is stale. The
    problems that it opens are written together with it, or not at all.
    """

    def load_batch(self, due: BatchDue) -> tuple[EmissionBatch | None, BatchSending | None]:
        """The batch and how far its sending got; None for what is not there."""
        ...

    def save_batch(
        self, due: BatchDue, sending: BatchSending, *, opened: Sequence[Problem], now: datetime
    ) -> BatchSending:
        """Write how far it got, and at most 90 problems; the same with its new version."""
        ...

    def keep_batch(self, due: BatchDue) -> None:
        """A problem of the batch is open: keep it for as long as it takes."""
        ...

    def expire_batch(self, due: BatchDue, now: datetime) -> None:
        """The batch is settled: let it go after the time for which evidence is kept."""
        ...

    def load_hour(self, due: HourDue) -> HourSending:
        """How far the hour's sending got; a fresh one if it never began."""
        ...

    def save_hour(
        self, due: HourDue, sending: HourSending, *, opened: Sequence[Problem], now: datetime
    ) -> HourSending:
        """Write how far it got; the same with its new version."""
        ...

    def open_problem(self, due: EmissionDue, problem: Problem, now: datetime) -> bool:
        """Open a problem of what was sent, unless one with another code is; whether it is open."""
        ...

    def resolve_problem(self, due: EmissionDue, identifier: str, now: datetime) -> None:
        """The problem, if there is one, is settled: take it out of the index."""
        ...


class EmissionInbox(Protocol):
    """The emitter's end of the emission queue, and its dead-letter queue."""

    def delay(self, receipts: Sequence[str], delay_s: int) -> None:
        """Hand the messages back, to be seen again after `delay_s` (at most 12 hours)."""
        ...

    def park(self, due: EmissionDue, *, dedupe: str, code: str, message: str) -> None:
        """Put what is due into the dead-letter queue, with its reason."""
        ...

    def park_unreadable(self, body: str, *, group: str, dedupe: str) -> None:
        """Put a message that nobody can read into the dead-letter queue as it is."""
        ...


class Inbox(Protocol):
    """The billing layer's events that were heard of, each one once by its id."""

    def note(self, notice: Notice, now: datetime) -> bool:
        """Write the event down; whether it is known and in the queue already."""
        ...

    def mark_queued(self, notice_id: str, now: datetime) -> None:
        """It is in the queue: repeats are of no interest from now on."""
        ...

    def is_done(self, notice_id: str) -> bool:
        """Whether the event has been handled."""
        ...

    def mark_done(self, notice_id: str, now: datetime) -> None:
        """The event has been handled, with success."""
        ...

    def cursor(self) -> int | None:
        """Up to which second the billing layer's own list of events was read."""
        ...

    def move_cursor(self, to_s: int) -> None:
        """The list was read up to this second; it never moves back."""
        ...


class NoticeQueue(Protocol):
    """The way from taking an event in to handling it, at least once."""

    def put(self, notice: Notice) -> None:
        """Hand the event on; raises `StorageUnavailableError`."""
        ...


class BillingEvents(Protocol):
    """The billing layer's own list of what happened."""

    def since(self, created_s: int) -> Iterable[Notice]:
        """Every event that we act on, from that second on; raises `BillingUnavailableError`."""
        ...


class BillingReports(Protocol):
    """The billing layer's reports of usage that it dropped after taking it."""

    def fetch_report(self, event_id: str) -> DropReport:
        """The report that an event announces; raises `BillingUnavailableError`."""
        ...


class CustomersByBilling(Protocol):
    """Who is who, from the billing layer's side."""

    def of_billing_customer(self, billing_customer: str) -> Sequence[str]:
        """The customers with that id at the billing layer, as it is now."""
        ...


class DroppedUsages(Protocol):
    """Identifiers that the billing layer says it dropped."""

    def record(self, samples: Sequence[DroppedUsage], now: datetime) -> None:
        """Keep what a report says, each identifier once."""
        ...

    def find(self, identifiers: Sequence[str]) -> Mapping[str, DroppedUsage]:
        """Those of `identifiers` that a report named."""
        ...


class Overviews(Protocol):
    """Customers as a dashboard shows them, with what only a dashboard keeps."""

    def load(self, customer: str) -> Overview | None:
        """Everything of one customer; None where there is no such customer."""
        ...

    def put_limits(self, customer: str, limits: Limits) -> None:
        """Make these the customer's limits."""
        ...

    def put_facts(self, customer: str, facts: BillingFacts) -> None:
        """Remember what the billing layer said; `SupersededError` if it was asked again since."""
        ...


class UsageCounters(Protocol):
    """The totals, as far as a dashboard reads them."""

    def read(
        self,
        customer: str,
        meter: str,
        *,
        days_from: date,
        shares_from: date,
        until: date,
        edge: datetime | None,
    ) -> UsageCounts:
        """Days from `days_from` and shares from `shares_from` up to `until`, and a kept edge."""
        ...

    def keep_edge(self, customer: str, meter: str, edge: Edge) -> None:
        """Remember an edge."""
        ...


class ComparisonRequests(Protocol):
    """The way to the comparison with the billing layer, which nobody waits for."""

    def request(self, customer: str) -> None:
        """Ask for one; `StorageUnavailableError` or `StorageError` if that cannot be done."""
        ...


class BillingStatements(Protocol):
    """What the billing layer has invoiced."""

    def list_invoices(self, billing_customer: str, limit: int) -> Sequence[PastInvoice]:
        """The newest invoices that are not drafts, newest first; `BillingUnavailableError`."""
        ...


class ViewerTokens(Protocol):
    """Signed tokens that say who looks, each for one purpose."""

    def sign(self, viewer: Viewer, purpose: str, now: datetime) -> str:
        """A token of that purpose, good until the viewer's `expires_at`."""
        ...

    def read(self, token: str, purpose: str, now: datetime) -> Viewer:
        """Who a token of that purpose is for; raises `UnauthenticatedError`."""
        ...


class FollowedLinks(Protocol):
    """The links that were followed, as long as they could be followed again."""

    def follow(self, link: str, expires_at: datetime) -> bool:
        """Note that this one is followed; whether it is the first time."""
        ...


class AppSessions(Protocol):
    """The sessions of the app's own sign-in."""

    def find(
        self, authorization: str | None, cookies: Mapping[str, str], now: datetime
    ) -> Viewer | None:
        """Who is signed in; None where nobody is. Raises `UnauthenticatedError`."""
        ...


class Budgets(Protocol):
    """What each customer has used and holds of each meter, with conditions that keep limits."""

    def get(self, customer: str, meter: str) -> Budget:
        """The budget as it is; an empty one where there is none."""
        ...

    def get_many(self, pairs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Budget]:
        """Budgets by customer and meter, an empty one where there is none."""
        ...

    def reserve(
        self,
        customer: str,
        meter: str,
        period: Period,
        serial: str,
        hold: Hold,
        *,
        stop_sub_units: int,
    ) -> int | None:
        """Hold, if the budget is of this period and stays within the stop; what is then committed.

        None when one of its conditions does not hold: then nothing is held.
        """
        ...

    def give_back(self, customer: str, meter: str, holds: Mapping[str, Hold]) -> bool:
        """Take holds away that are still as they were read; False when one is not."""
        ...

    def shrink(self, customer: str, meter: str, serial: str, before: Hold, after: Hold) -> bool:
        """Give a part of a hold back; False when it is no longer as it was read."""
        ...

    def begin(self, customer: str, meter: str, before: Budget, period: Period, used: int) -> bool:
        """Begin a period with what is counted of it; False when the budget changed meanwhile."""
        ...


class Controls(Protocol):
    """All that says whether a customer may spend, in one read."""

    def get_standing(self, customer: str) -> Standing | None:
        """The customer, its subscription, limits and freeze; None where there is no customer."""
        ...


class BilledUsage(Protocol):
    """What the billing layer counts, in sub-units; raises `BillingUnavailableError`."""

    def total(self, billing_customer: str, meter: Meter, start: datetime, end: datetime) -> int:
        """In a span of whole minutes."""
        ...

    def hours(
        self, billing_customer: str, meter: Meter, start: datetime, end: datetime
    ) -> Mapping[datetime, int]:
        """In each hour of a span of whole hours that has any."""
        ...


class CountedHours(Protocol):
    """The totals, hour by hour."""

    def hours_between(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> Mapping[datetime, int]:
        """Sub-units of each hour that has any, read strongly consistently."""
        ...

    def count_hours(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> Mapping[datetime, HourTotal]:
        """The same, with the number of events of each hour."""
        ...


class SendingRecords(Protocol):
    """How far the sending of what the ledger holds is, batch by batch."""

    def batches_since(
        self, customer: str, meter: str, made_from: datetime
    ) -> Iterable[BatchRecord]:
        """Every batch that was made since then, read strongly consistently."""
        ...

    def reasons_of(
        self, customer: str, meter: str, identifiers: Sequence[str]
    ) -> Mapping[str, str]:
        """The codes of the problems that are on record for these events."""
        ...

    def is_in_broken_off(self, customer: str, meter: str, at: datetime) -> bool:
        """Whether usage of that time is listed with its period, which was not invoiced."""
        ...

    def list_unknown(self) -> Iterable[tuple[str, str, datetime]]:
        """Customer, meter and time of every send that is unknown; read a moment late."""
        ...

    def find_entry(
        self, customer: str, meter: str, identifier: str, made_from: datetime
    ) -> SentEntry | None:
        """One event in its batch, made since then; raises `SearchedTooLongError`."""
        ...


class Findings(Protocol):
    """Differences between ledger and bill that are not gone yet."""

    def open_hours(self, customer: str, meter: str) -> set[datetime]:
        """The hours for which a difference is on record."""
        ...

    def put(self, difference: Difference, now: datetime) -> None:
        """Keep a difference, in the place of what was known of that hour."""
        ...

    def close(self, key: HourKey, now: datetime) -> None:
        """The hour agrees: the finding is history."""
        ...


class ParkedBatches(Protocol):
    """What lies in the emission queue's dead-letter queue."""

    def parked(self) -> DeadLetters:
        """What is there, without taking it out."""
        ...


class MetersInUse(Protocol):
    """Which meters of a customer count anything."""

    def has_usage(self, customer: str, meter: str, start: datetime, end: datetime) -> bool:
        """Whether the totals hold anything of that meter in the span."""
        ...


class RunCursor(Protocol):
    """Where a scheduled run that ran out of time is to go on."""

    def read(self) -> str | None:
        """The place; None for the beginning."""
        ...

    def write(self, place: str | None) -> None:
        """The next run begins there."""
        ...


class Guardrails(Protocol):
    """Freezes and notifications, each written once, with an audit trail."""

    def record(self, notification: Notification) -> bool:
        """Keep it, unless it is known; whether it is new. It is open until it is published."""
        ...

    def is_known(self, notification: Notification) -> bool:
        """Whether it was recorded before, read strongly consistently."""
        ...

    def mark_published(self, notification: Notification) -> None:
        """It is on the event bus."""
        ...

    def list_open(self) -> Sequence[Notification]:
        """What was kept and never marked as published; read a moment late."""
        ...

    def freeze(self, customer: str, freeze: Freeze, notification: Notification) -> bool:
        """Freeze, note it in the audit trail and keep the notification; False when frozen."""
        ...

    def unfreeze(
        self, customer: str, freeze: Freeze, lifted: Lifting, notification: Notification
    ) -> bool:
        """Lift this very freeze, with the audit trail; False when it is another or lifted."""
        ...


class BillingAlerts(Protocol):
    """The billing layer's own alerts; raises `BillingUnavailableError`."""

    def fetch_alert(self, event_id: str) -> TriggeredAlert:
        """What went off, by the id of the event that told of it."""
        ...


class EventBus(Protocol):
    """Where domain events go, for operators' own targets and for ours."""

    def publish(self, notification: Notification) -> None:
        """Put it on the bus; raises `NotPublishedError`."""
        ...


class UsageHistory(Protocol):
    """A customer's past, as the breaker judges by it."""

    def list_days(
        self, customer: str, meter: str, first: date, last: date
    ) -> Mapping[date, DayUse]:
        """The days with usage, both ends included."""
        ...

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        """What the hours from `start` up to and not including `end` hold; both on the hour."""
        ...

    def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
        """The action or user (`kind`) that used most on a day; None when none was named."""
        ...


class BillingInvoices(Protocol):
    """The billing layer's invoices; raises `BillingUnavailableError`."""

    def get(self, invoice: str) -> BillingInvoice:
        """The invoice as it is now; `NotFoundError`."""
        ...

    def hold(self, invoice: str, reason: HoldReason, why: str) -> None:
        """Keep a draft from being finalised; `InvoiceFinalError`."""
        ...

    def release(self, invoice: str, reason: HoldReason) -> Set[HoldReason]:
        """End one reason to hold a draft; those that are left. `InvoiceFinalError`."""
        ...

    def bill_late(
        self,
        billing_customer: str,
        *,
        name: str,
        amount_minor: int,
        currency: str,
        description: str,
        period: Period,
    ) -> str:
        """An item on the next invoice, once for each `name`, negative allowed; its id."""
        ...


class InvoiceChecks(Protocol):
    """What was found out about invoices."""

    def get(self, invoice: str) -> InvoiceCheck | None:
        """The last comparison, read strongly consistently."""
        ...

    def save(self, check: InvoiceCheck) -> InvoiceCheck:
        """Write it if its version is still the one that was read, or `SupersededError`."""
        ...

    def list_open(self) -> Iterable[InvoiceCheck]:
        """Those that are to be looked at again (`InvoiceCheck.is_open`); read a moment late."""
        ...

    def invoice_of(self, customer: str, meter: str, at: datetime) -> str | None:
        """The invoice whose period of that meter contains `at`, if one was checked."""
        ...


class CheckedInvoices(Protocol):
    """What was found out about a customer's invoices, to be looked up."""

    def get(self, invoice: str) -> InvoiceCheck | None:
        """The last comparison, read strongly consistently."""
        ...

    def invoice_of(self, customer: str, meter: str, at: datetime) -> str | None:
        """The invoice whose period of that meter contains `at`, if one was checked."""
        ...

    def list_of(self, customer: str, meter: str) -> Iterable[str]:
        """The customer's invoices that bill the meter, newest period first."""
        ...


class SentUsage(Protocol):
    """What was sent, and what of it is listed."""

    def batches_since(
        self, customer: str, meter: str, made_from: datetime
    ) -> Iterable[BatchRecord]:
        """Every batch that was made since then, read strongly consistently."""
        ...

    def find_listed(
        self, customer: str, meter: str, identifiers: Sequence[str]
    ) -> Mapping[str, int]:
        """Sub-units of those that are listed as not billed, or as taken for nothing."""
        ...


class LateProblems(Protocol):
    """Events that came after their invoice was final."""

    def list_late(self) -> Iterable[tuple[str, str, datetime]]:
        """Customer, meter and time of each that is not settled; read a moment late.

        Of an hour's total it is the first second, and the last: it may be of two periods.
        """
        ...

    def late_between(
        self, customer: str, meter: str, period: Period
    ) -> Sequence[tuple[str, datetime]]:
        """Those that are of that period, at least in part, and not settled.

        The identifier of each, and the last second that it is about.
        """
        ...

    def resolve_late(self, customer: str, meter: str, identifier: str, now: datetime) -> None:
        """It is settled: take it out of the list."""
        ...


class Deliveries(Protocol):
    """How far the telling of a notification is, channel by channel."""

    def claim(self, notification: Notification, channel: Channel, now_s: int, until_s: int) -> bool:
        """Take a channel's delivery in hand until then; False when it is done or in other hands."""
        ...

    def is_delivered(self, notification: Notification, channel: Channel) -> bool:
        """Whether the channel has it."""
        ...

    def settle(self, notification: Notification, channel: Channel, outcome: str) -> None:
        """Write down how the delivery ended: `sent`, or `skipped: <why>`."""
        ...

    def give_up_claim(self, notification: Notification, channel: Channel) -> None:
        """The delivery failed: the next try need not wait for the claim to end."""
        ...


class Sender(Protocol):
    """One channel's way out."""

    def send(
        self,
        notification: Notification,
        message: Message | None,
        customer: Customer | None,
        now: datetime,
        /,
    ) -> str | None:
        """Send; None, or why there is nobody to send to. Raises `DeliveryFailedError`."""
        ...


class ActionHistory(Protocol):
    """What an action used before."""

    def list_runs(
        self,
        customer: str,
        meter: str,
        action: str,
        start: datetime,
        end: datetime,
        most: int,
    ) -> Sequence[Decimal]:
        """What the action's newest events used, one quantity each; at most `most`."""
        ...


class EventsByKey(Protocol):
    """The ledger, as far as single events are looked up in it."""

    def find(self, key: EventKey) -> LedgerEntry | None:
        """One event by its key, read strongly consistently."""
        ...


class ComparableInvoices(Protocol):
    """The billing layer's invoices, line by line; raises `BillingUnavailableError`."""

    def read(self, invoice: str) -> ComparedInvoice:
        """The invoice with its lines as they are now."""
        ...

    def find_previous(self, invoice: str) -> ComparedInvoice | None:
        """The newest sent invoice of the same subscription before it, both of a whole cycle."""
        ...
