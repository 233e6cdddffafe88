"""The one place where adapters meet services: what each function is made of.

Every function calls its builder once, at cold start, so that a wrong environment stops it there.
Imports are inside the builders, so that no function loads what only another one needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterline.adapters.trusted_tls import begin_trusted_tls
from meterline.errors import ConfigurationError

if TYPE_CHECKING:
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_overviews import DynamoOverviews
    from meterline.adapters.dynamodb_sending_records import DynamoCountedHours
    from meterline.adapters.dynamodb_stream import StreamReader
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.stripe_access import StripeAccess
    from meterline.catalog.changelog import PricingChange
    from meterline.pages import Pages
    from meterline.pages.answers import PageAnswers
    from meterline.ports import (
        BilledUsage,
        CustomerAccounts,
        EmissionInbox,
        EmissionQueue,
        ParkedBatches,
        RateCards,
        RunCursor,
    )
    from meterline.services.apply_stripe_event import ApplyStripeEvent
    from meterline.services.authenticate import Authenticate
    from meterline.services.authorize_usage import AuthorizeUsage
    from meterline.services.check_invoice import CheckInvoice
    from meterline.services.compare_usage import CompareUsage
    from meterline.services.emit_usage import EmitUsage
    from meterline.services.list_after_end import ListAfterEnd
    from meterline.services.manage_customers import ManageCustomers
    from meterline.services.notify import Notify
    from meterline.services.poll_stripe_events import PollStripeEvents
    from meterline.services.portal_sessions import OpenPortalSession
    from meterline.services.preview_usage import PreviewUsage
    from meterline.services.project_usage import ProjectUsage
    from meterline.services.receive_stripe_webhook import ReceiveStripeWebhook
    from meterline.services.recheck_invoices import RecheckInvoices
    from meterline.services.reconcile_customers import ReconcileCustomers
    from meterline.services.reconcile_usage import ReconcileUsage
    from meterline.services.recount_usage import RecountUsage
    from meterline.services.report_usage import ReportUsage
    from meterline.services.set_limits import SetLimits
    from meterline.services.settle_invoices import Observer, SettleInvoices
    from meterline.services.show_usage import ShowUsage
    from meterline.services.sign_in import SignIn
    from meterline.services.trace_usage import TraceUsage
    from meterline.services.unfreeze_customer import UnfreezeCustomer
    from meterline.services.view_dashboard import ViewDashboard
    from meterline.services.watch_breakers import WatchBreakers
    from meterline.services.watch_usage import Watch, WatchUsage

Environment = Mapping[str, str]
_WATCH_S = 2.0
"""What watching may take of a stream's delivery; one answer that does not come may add to it."""

if "AWS_ENDPOINT_URL" not in os.environ:
    # Every function needs it, and the imports of its builder take just as long.
    begin_trusted_tls()


def require(environment: Environment, name: str) -> str:
    """A variable that must be set; without a default, so that a mistake shows at once."""
    value = environment.get(name, "")
    if not value:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return value


def _access_stripe(
    environment: Environment, *, timeout_s: float = 10.0, retries: int = 2
) -> StripeAccess:
    """The way to Stripe of a function that asks it; where a person waits, ask for less."""
    from meterline.adapters.secrets_api_key import SecretApiKey
    from meterline.adapters.stripe_access import StripeAccess

    return StripeAccess(
        SecretApiKey(require(environment, "STRIPE_SECRET_ID")),
        api_base=environment.get("STRIPE_API_BASE") or None,
        timeout_s=timeout_s,
        retries=retries,
    )


def _authenticate(wire: DynamoWire, accounts_table: str) -> Authenticate:
    """Who calls, for every function with an API key."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_key_calls import DynamoKeyCalls
    from meterline.clock import utc_now
    from meterline.services.admit_calls import AdmitCalls
    from meterline.services.authenticate import Authenticate

    return Authenticate(
        DynamoAccounts(wire, accounts_table),
        AdmitCalls(DynamoKeyCalls(wire, accounts_table)),
        utc_now,
    )


def authenticate_and_report_usage(environment: Environment) -> tuple[Authenticate, ReportUsage]:
    """What `report_usage` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_catalog import DynamoRateCards
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.catalog import load_meters
    from meterline.services.report_usage import ReportUsage

    wire = DynamoWire(pool_size=16)
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    accounts = DynamoAccounts(wire, accounts_table)
    rate_cards = DynamoRateCards(wire, accounts_table)
    ledger = DynamoLedger(wire, require(environment, "EVENTS_TABLE"))
    return (
        _authenticate(wire, accounts_table),
        ReportUsage(ledger, accounts, load_meters(), rate_cards),
    )


def authenticate_and_manage_customers(
    environment: Environment,
) -> tuple[Authenticate, ManageCustomers]:
    """What `manage_customers` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.stripe_subscriptions import StripeSubscriptions
    from meterline.services.manage_customers import ManageCustomers
    from meterline.services.sync_subscriptions import SyncSubscriptions

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    accounts = DynamoAccounts(wire, accounts_table)
    subscriptions = StripeSubscriptions(_access_stripe(environment, timeout_s=5.0, retries=1))
    plans = DynamoPlans(wire, accounts_table)
    sync = SyncSubscriptions(accounts, subscriptions, plans)
    return _authenticate(wire, accounts_table), ManageCustomers(accounts, accounts, sync, plans)


def authenticate_and_authorize_usage(
    environment: Environment,
) -> tuple[Authenticate, AuthorizeUsage, RateCards]:
    """What `authorize_usage` is made of."""
    from meterline.adapters.dynamodb_budgets import DynamoBudgets
    from meterline.adapters.dynamodb_catalog import DynamoPlans, DynamoRateCards
    from meterline.adapters.dynamodb_controls import DynamoControls
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.catalog import load_meters
    from meterline.services.authorize_usage import AuthorizeUsage
    from meterline.services.measure_period import MeasurePeriod

    wire = DynamoWire(pool_size=16)
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    totals_table = require(environment, "TOTALS_TABLE")
    return (
        _authenticate(wire, accounts_table),
        AuthorizeUsage(
            DynamoControls(wire, accounts_table),
            DynamoBudgets(wire, totals_table),
            DynamoPlans(wire, accounts_table),
            load_meters(),
            MeasurePeriod(
                DynamoCounters(wire, totals_table),
                DynamoLedger(wire, require(environment, "EVENTS_TABLE")),
            ),
        ),
        DynamoRateCards(wire, accounts_table),
    )


def project_usage(environment: Environment) -> ProjectUsage:
    """What `project_usage` is made of."""
    from datetime import UTC, datetime

    from botocore.session import get_session

    from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
    from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
    from meterline.adapters.dynamodb_wire import DynamoWire, TimedWire
    from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
    from meterline.catalog import load_meters
    from meterline.services.project_usage import ProjectUsage

    session = get_session()
    wire = DynamoWire(session)
    totals = DynamoTotals(
        wire, require(environment, "TOTALS_TABLE"), require(environment, "EMISSIONS_TABLE")
    )
    queue = SqsEmissionQueue(require(environment, "EMISSIONS_QUEUE_URL"), session=session)
    timed = TimedWire(session, timeout_s=1.0)
    watch_in_time = _watch_usage(environment, timed, timed.has_time)

    def watch_usage(pairs: Iterable[tuple[str, str]], now: datetime) -> Watch:
        timed.begin(_WATCH_S)
        return watch_in_time(pairs, now)

    return ProjectUsage(
        totals,
        queue,
        load_meters(),
        max_items=MAX_STEP_ITEMS,
        max_entries=MAX_ENTRIES,
        now=lambda: datetime.now(UTC),
        watch=lambda pairs: watch_usage(pairs, datetime.now(UTC)),
        find_periods=totals.find_periods,
    )


def _watch_usage(
    environment: Environment, wire: DynamoWire, has_time: Callable[[], bool] = lambda: True
) -> WatchUsage:
    """The watch over budgets, for the stream and for the scan."""
    from meterline.adapters.dynamodb_budgets import DynamoBudgets
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_controls import DynamoControls
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_history import DynamoHistory
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.eventbridge_bus import EventBridgeBus
    from meterline.catalog import load_meters
    from meterline.catalog.guardrails import load_breaker_rule
    from meterline.domain.breaker import BreakerMode
    from meterline.services.measure_period import MeasurePeriod
    from meterline.services.watch_usage import WatchUsage

    mode = require(environment, "BREAKER_MODE")
    if mode not in tuple(BreakerMode):
        raise ConfigurationError(f"BREAKER_MODE must be freeze or warn, is {mode!r}")
    totals_table = require(environment, "TOTALS_TABLE")
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    return WatchUsage(
        DynamoBudgets(wire, totals_table),
        DynamoControls(wire, accounts_table),
        DynamoHistory(wire, totals_table),
        DynamoGuardrails(wire, accounts_table),
        EventBridgeBus(require(environment, "EVENT_BUS")),
        DynamoPlans(wire, accounts_table),
        load_meters(),
        load_breaker_rule(BreakerMode(mode)),
        MeasurePeriod(
            DynamoCounters(wire, totals_table),
            DynamoLedger(wire, require(environment, "EVENTS_TABLE")),
        ),
        has_time,
    )


def watch_breakers(environment: Environment) -> WatchBreakers:
    """What `watch_breakers` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_budgets import DynamoBudgets
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.catalog import load_meters
    from meterline.services.watch_breakers import WatchBreakers

    wire = DynamoWire()
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    return WatchBreakers(
        DynamoAccounts(wire, accounts_table),
        DynamoBudgets(wire, require(environment, "TOTALS_TABLE")),
        DynamoGuardrails(wire, accounts_table),
        _watch_usage(environment, wire),
        load_meters(),
    )


def authenticate_and_unfreeze_customer(
    environment: Environment,
) -> tuple[Authenticate, UnfreezeCustomer, DynamoGuardrails]:
    """What `unfreeze_customer` is made of."""
    from meterline.adapters.dynamodb_controls import DynamoControls
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.eventbridge_bus import EventBridgeBus
    from meterline.services.unfreeze_customer import UnfreezeCustomer

    wire = DynamoWire()
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    guardrails = DynamoGuardrails(wire, accounts_table)
    return (
        _authenticate(wire, accounts_table),
        UnfreezeCustomer(
            DynamoControls(wire, accounts_table),
            guardrails,
            EventBridgeBus(require(environment, "EVENT_BUS")),
        ),
        guardrails,
    )


def read_stream(environment: Environment) -> StreamReader:
    """How `project_usage` reads the ledger's stream."""
    from meterline.adapters.dynamodb_set_aside import SetAsideOnce
    from meterline.adapters.dynamodb_stream import StreamReader
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.sqs_emission_queue import SqsDeadLetters
    from meterline.catalog import load_meters

    shards = require(environment, "STREAM_SHARDS")
    if shards not in ("many", "one"):
        raise ConfigurationError(f"STREAM_SHARDS must be many or one, is {shards!r}")
    return StreamReader(
        load_meters(),
        SetAsideOnce(
            SqsDeadLetters(require(environment, "PROJECTION_DLQ_URL")),
            DynamoWire(),
            require(environment, "TOTALS_TABLE"),
        ),
        one_shard=shards == "one",
    )


def emit_usage(environment: Environment) -> EmitUsage:
    """What `emit_usage` is made of."""
    import time
    from datetime import UTC, datetime

    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_emissions import DynamoEmissions
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.secrets_api_key import SecretApiKey
    from meterline.adapters.sqs_emission import SqsEmissionInbox
    from meterline.adapters.stripe_billing import StripeBilling
    from meterline.catalog import load_meters
    from meterline.services.emit_usage import EmitUsage

    wire = DynamoWire(pool_size=16)
    return EmitUsage(
        DynamoEmissions(wire, require(environment, "EMISSIONS_TABLE")),
        SqsEmissionInbox(
            require(environment, "EMISSIONS_QUEUE_URL"), require(environment, "EMISSIONS_DLQ_URL")
        ),
        StripeBilling(
            SecretApiKey(require(environment, "STRIPE_SECRET_ID")),
            api_base=environment.get("STRIPE_API_BASE") or None,
        ),
        DynamoAccounts(wire, require(environment, "ACCOUNTS_TABLE")),
        DynamoCounters(wire, require(environment, "TOTALS_TABLE")),
        load_meters(),
        now=lambda: datetime.now(UTC),
        pause=time.sleep,
    )


def receive_stripe_webhook(environment: Environment) -> ReceiveStripeWebhook:
    """What `receive_stripe_webhook` is made of."""
    from botocore.session import get_session

    from meterline.adapters.dynamodb_inbox import DynamoInbox
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.secrets_signing import SigningSecrets
    from meterline.adapters.sqs_notices import SqsNotices
    from meterline.services.receive_stripe_webhook import ReceiveStripeWebhook

    session = get_session()
    return ReceiveStripeWebhook(
        SigningSecrets(require(environment, "STRIPE_WEBHOOK_SECRET_ID")),
        # Stripe waits for ten seconds or so: better to answer 503 in time than not at all.
        DynamoInbox(DynamoWire(session, deadline_s=4.0), require(environment, "INBOX_TABLE")),
        SqsNotices(require(environment, "STRIPE_EVENTS_QUEUE_URL"), session),
    )


def apply_stripe_event(environment: Environment) -> ApplyStripeEvent:
    """What `apply_stripe_event` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_books import DynamoDroppedUsages
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_inbox import DynamoInbox
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.eventbridge_bus import EventBridgeBus
    from meterline.adapters.stripe_events import StripeEvents
    from meterline.adapters.stripe_subscriptions import StripeSubscriptions
    from meterline.catalog import load_meters
    from meterline.services.apply_stripe_event import ApplyStripeEvent
    from meterline.services.sync_subscriptions import SyncSubscriptions
    from meterline.services.tell_alert import TellAlert

    wire = DynamoWire()
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    books_table = require(environment, "BOOKS_TABLE")
    accounts = DynamoAccounts(wire, accounts_table)
    stripe_access = _access_stripe(environment)
    events = StripeEvents(stripe_access)
    return ApplyStripeEvent(
        DynamoInbox(wire, require(environment, "INBOX_TABLE")),
        accounts,
        events,
        DynamoDroppedUsages(wire, books_table),
        sync=SyncSubscriptions(
            accounts,
            StripeSubscriptions(stripe_access),
            DynamoPlans(wire, accounts_table),
        ),
        check_invoice=_settle_invoice(environment, wire, stripe_access),
        list_after_end=make_list_after_end(
            wire,
            stripe_access,
            accounts_table=accounts_table,
            events_table=require(environment, "EVENTS_TABLE"),
            totals_table=require(environment, "TOTALS_TABLE"),
            emissions_table=require(environment, "EMISSIONS_TABLE"),
        ),
        tell_alert=TellAlert(
            events,
            DynamoGuardrails(wire, accounts_table),
            EventBridgeBus(require(environment, "EVENT_BUS")),
            load_meters(),
        ),
    )


def poll_stripe_events(environment: Environment) -> PollStripeEvents:
    """What `poll_stripe_events` is made of."""
    from botocore.session import get_session

    from meterline.adapters.dynamodb_inbox import DynamoInbox
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.sqs_notices import SqsNotices
    from meterline.adapters.stripe_events import StripeEvents
    from meterline.services.poll_stripe_events import PollStripeEvents

    session = get_session()
    return PollStripeEvents(
        StripeEvents(_access_stripe(environment)),
        DynamoInbox(DynamoWire(session), require(environment, "INBOX_TABLE")),
        SqsNotices(require(environment, "STRIPE_EVENTS_QUEUE_URL"), session),
    )


def show_usage(
    environment: Environment,
) -> tuple[Authenticate, ShowUsage, SetLimits, OpenPortalSession]:
    """What `show_usage` is made of."""
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_overviews import DynamoOverviews
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.jwt_viewers import JwtViewers
    from meterline.adapters.secrets_dashboard import SecretDashboard
    from meterline.services.portal_sessions import OpenPortalSession

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    overviews = DynamoOverviews(wire, accounts_table)
    plans = DynamoPlans(wire, accounts_table)
    return (
        _authenticate(wire, accounts_table),
        _read_dashboards(environment, wire, overviews, plans),
        _set_limits(environment, wire, overviews, plans),
        OpenPortalSession(
            overviews,
            JwtViewers(SecretDashboard(require(environment, "DASHBOARD_SECRET_ID"))),
        ),
    )


def _set_limits(
    environment: Environment, wire: DynamoWire, overviews: DynamoOverviews, plans: DynamoPlans
) -> SetLimits:
    from meterline.adapters.dynamodb_budgets import DynamoBudgets
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.catalog import load_meters
    from meterline.services.measure_period import MeasurePeriod
    from meterline.services.set_limits import SetLimits

    totals_table = require(environment, "TOTALS_TABLE")
    ledger = DynamoLedger(wire, require(environment, "EVENTS_TABLE"))
    return SetLimits(
        overviews,
        DynamoBudgets(wire, totals_table),
        plans,
        load_meters(),
        MeasurePeriod(DynamoCounters(wire, totals_table), ledger),
    )


def _read_dashboards(
    environment: Environment, wire: DynamoWire, overviews: DynamoOverviews, plans: DynamoPlans
) -> ShowUsage:
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_usage import DynamoUsage
    from meterline.adapters.sqs_comparisons import SqsComparisons
    from meterline.catalog import load_meters
    from meterline.services.show_usage import ShowUsage

    return ShowUsage(
        overviews,
        DynamoUsage(wire, require(environment, "TOTALS_TABLE")),
        DynamoLedger(wire, require(environment, "EVENTS_TABLE")),
        plans,
        load_meters(),
        SqsComparisons(require(environment, "COMPARISONS_QUEUE_URL")),
    )


def trace_usage(environment: Environment) -> tuple[Authenticate, TraceUsage]:
    """What `trace_usage` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_wire import DynamoWire

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    trace = make_trace(
        wire,
        DynamoAccounts(wire, accounts_table),
        books_table=require(environment, "BOOKS_TABLE"),
        events_table=require(environment, "EVENTS_TABLE"),
        emissions_table=require(environment, "EMISSIONS_TABLE"),
        totals_table=require(environment, "TOTALS_TABLE"),
    )
    return _authenticate(wire, accounts_table), trace


def make_trace(
    wire: DynamoWire,
    accounts: CustomerAccounts,
    *,
    books_table: str,
    events_table: str,
    emissions_table: str,
    totals_table: str,
) -> TraceUsage:
    """Invoices and their events, for the function and for the operator's command."""
    from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
    from meterline.adapters.dynamodb_emissions import DynamoEmissions
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_sending_records import (
        DynamoCountedHours,
        DynamoSendingRecords,
    )
    from meterline.catalog import load_meters
    from meterline.services.trace_usage import TraceUsage

    return TraceUsage(
        accounts,
        DynamoInvoiceChecks(wire, books_table),
        DynamoLedger(wire, events_table),
        DynamoSendingRecords(wire, emissions_table),
        DynamoEmissions(wire, emissions_table),
        DynamoCountedHours(wire, totals_table),
        load_meters(),
    )


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What `serve_dashboard` is made of."""

    pages: Pages
    answers: PageAnswers
    sign_in: SignIn
    views: ViewDashboard
    changelog: Sequence[PricingChange]


def serve_dashboard(environment: Environment) -> Dashboard:
    """What `serve_dashboard` is made of."""
    from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_links import DynamoLinks
    from meterline.adapters.dynamodb_overviews import DynamoOverviews
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.identity_sessions import IdentitySessions
    from meterline.adapters.jwt_viewers import JwtViewers
    from meterline.adapters.secrets_dashboard import SecretDashboard
    from meterline.catalog import load_meters
    from meterline.catalog.changelog import load_changelog
    from meterline.pages import Pages
    from meterline.pages.answers import PageAnswers
    from meterline.services.export_events import ExportEvents
    from meterline.services.sign_in import SignIn
    from meterline.services.trace_usage import InvoiceEvents
    from meterline.services.view_dashboard import ViewDashboard

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    overviews = DynamoOverviews(wire, accounts_table)
    plans = DynamoPlans(wire, accounts_table)
    secret = SecretDashboard(require(environment, "DASHBOARD_SECRET_ID"))
    ledger = DynamoLedger(wire, require(environment, "EVENTS_TABLE"))
    pages = Pages()
    return Dashboard(
        pages,
        PageAnswers(pages, environment.get("FRAME_ORIGINS", "").split()),
        SignIn(JwtViewers(secret), DynamoLinks(wire, accounts_table), IdentitySessions(secret)),
        ViewDashboard(
            overviews,
            _read_dashboards(environment, wire, overviews, plans),
            _set_limits(environment, wire, overviews, plans),
            ExportEvents(ledger),
            InvoiceEvents(DynamoInvoiceChecks(wire, require(environment, "BOOKS_TABLE")), ledger),
            plans,
            load_meters(),
        ),
        load_changelog(),
    )


def compare_usage(environment: Environment) -> CompareUsage:
    """What `compare_usage` is made of."""
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_overviews import DynamoOverviews
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.stripe_statements import StripeStatements
    from meterline.adapters.stripe_usage import StripeUsage
    from meterline.catalog import load_meters
    from meterline.services.compare_usage import CompareUsage
    from meterline.services.measure_period import MeasurePeriod

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    totals = DynamoCounters(wire, require(environment, "TOTALS_TABLE"))
    ledger = DynamoLedger(wire, require(environment, "EVENTS_TABLE"))
    access = _access_stripe(environment, timeout_s=5.0)
    return CompareUsage(
        DynamoOverviews(wire, accounts_table),
        MeasurePeriod(totals, ledger),
        StripeUsage(access),
        StripeStatements(access),
        DynamoPlans(wire, accounts_table),
        load_meters(),
    )


def reconcile_usage(environment: Environment) -> tuple[ReconcileCustomers, RunCursor]:
    """What `reconcile_usage` is made of."""
    from botocore.session import get_session

    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_books import DynamoRunCursor
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.sqs_emission import SqsEmissionInbox
    from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
    from meterline.adapters.sqs_parked import SqsParked
    from meterline.adapters.sqs_wire import SqsWire
    from meterline.adapters.stripe_usage import StripeUsage
    from meterline.catalog import load_meters
    from meterline.services.reconcile_customers import ReconcileCustomers

    session = get_session()
    wire = DynamoWire(session, pool_size=16)
    accounts = DynamoAccounts(wire, require(environment, "ACCOUNTS_TABLE"))
    queue_url = require(environment, "EMISSIONS_QUEUE_URL")
    dead_url = require(environment, "EMISSIONS_DLQ_URL")
    stripe_access = _access_stripe(environment, retries=3)
    billed = StripeUsage(stripe_access)
    reconcile, counted = make_reconciliation(
        wire,
        events_table=require(environment, "EVENTS_TABLE"),
        totals_table=require(environment, "TOTALS_TABLE"),
        emissions_table=require(environment, "EMISSIONS_TABLE"),
        books_table=require(environment, "BOOKS_TABLE"),
        billed=billed,
        parked=SqsParked(dead_url, SqsWire(dead_url, session)),
        queue=SqsEmissionQueue(queue_url, session=session),
        inbox=SqsEmissionInbox(queue_url, dead_url),
    )
    return (
        ReconcileCustomers(
            accounts,
            accounts,
            counted,
            reconcile,
            load_meters(),
            list_after_end=make_list_after_end(
                wire,
                stripe_access,
                accounts_table=require(environment, "ACCOUNTS_TABLE"),
                events_table=require(environment, "EVENTS_TABLE"),
                totals_table=require(environment, "TOTALS_TABLE"),
                emissions_table=require(environment, "EMISSIONS_TABLE"),
            ),
        ),
        DynamoRunCursor(wire, require(environment, "BOOKS_TABLE"), "reconcile_usage"),
    )


def make_reconciliation(
    wire: DynamoWire,
    *,
    events_table: str,
    totals_table: str,
    emissions_table: str,
    books_table: str,
    billed: BilledUsage,
    parked: ParkedBatches,
    queue: EmissionQueue,
    inbox: EmissionInbox,
) -> tuple[ReconcileUsage, DynamoCountedHours]:
    """The comparison of one customer, for the function and for the operator's command."""
    from meterline.adapters.dynamodb_books import DynamoDroppedUsages, DynamoFindings
    from meterline.adapters.dynamodb_emissions import DynamoEmissions
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_sending_records import (
        DynamoCountedHours,
        DynamoSendingRecords,
    )
    from meterline.services.reconcile_usage import ReconcileUsage

    counted = DynamoCountedHours(wire, totals_table)
    return (
        ReconcileUsage(
            counted,
            billed,
            DynamoLedger(wire, events_table),
            DynamoSendingRecords(wire, emissions_table),
            DynamoDroppedUsages(wire, books_table),
            parked,
            DynamoFindings(wire, books_table),
            DynamoEmissions(wire, emissions_table),
            queue,
            inbox,
            make_recount(
                wire,
                events_table=events_table,
                totals_table=totals_table,
                emissions_table=emissions_table,
                queue=queue,
            ),
        ),
        counted,
    )


def make_list_after_end(
    wire: DynamoWire,
    stripe_access: StripeAccess,
    *,
    accounts_table: str,
    events_table: str,
    totals_table: str,
    emissions_table: str,
) -> ListAfterEnd:
    """What lists usage that was taken after an end, for each function and command that does."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_emissions import DynamoEmissions
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_sending_records import (
        DynamoCountedHours,
        DynamoSendingRecords,
    )
    from meterline.adapters.stripe_subscriptions import StripeSubscriptions
    from meterline.catalog import load_meters
    from meterline.services.list_after_end import ListAfterEnd

    return ListAfterEnd(
        DynamoAccounts(wire, accounts_table),
        StripeSubscriptions(stripe_access),
        DynamoCountedHours(wire, totals_table),
        DynamoLedger(wire, events_table),
        DynamoSendingRecords(wire, emissions_table),
        DynamoEmissions(wire, emissions_table),
        load_meters(),
    )


def make_recount(
    wire: DynamoWire,
    *,
    events_table: str,
    totals_table: str,
    emissions_table: str,
    queue: EmissionQueue,
) -> RecountUsage:
    """The count of what the stream lost, for reconciliation and for the operator's command."""
    from meterline.adapters.dynamodb_counted import DynamoCountedEvents
    from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
    from meterline.services.recount_usage import RecountUsage

    return RecountUsage(
        DynamoLedger(wire, events_table),
        DynamoCountedEvents(wire, emissions_table),
        DynamoTotals(wire, totals_table, emissions_table),
        queue,
        max_items=MAX_STEP_ITEMS,
        max_entries=MAX_ENTRIES,
    )


def settle_invoices(environment: Environment) -> RecheckInvoices:
    """What `settle_invoices` is made of."""
    from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
    from meterline.adapters.dynamodb_sending_records import DynamoSendingRecords
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.services.recheck_invoices import RecheckInvoices

    wire = DynamoWire()
    return RecheckInvoices(
        DynamoInvoiceChecks(wire, require(environment, "BOOKS_TABLE")),
        DynamoSendingRecords(wire, require(environment, "EMISSIONS_TABLE")),
        _settle_invoice(environment, wire, _access_stripe(environment)),
    )


def _settle_invoice(
    environment: Environment, wire: DynamoWire, stripe_access: StripeAccess
) -> SettleInvoices:
    """The check of one invoice, for each function that makes it."""
    return make_invoice_settlement(
        wire,
        stripe_access,
        accounts_table=require(environment, "ACCOUNTS_TABLE"),
        books_table=require(environment, "BOOKS_TABLE"),
        events_table=require(environment, "EVENTS_TABLE"),
        emissions_table=require(environment, "EMISSIONS_TABLE"),
        late_policy=require(environment, "LATE_USAGE_POLICY"),
        observers=(_check_invoice(environment, wire, stripe_access),),
    )


def make_invoice_settlement(
    wire: DynamoWire,
    stripe_access: StripeAccess,
    *,
    accounts_table: str,
    books_table: str,
    events_table: str,
    emissions_table: str,
    late_policy: str,
    observers: Sequence[Observer] = (),
) -> SettleInvoices:
    """The check of one invoice, for functions and the operator's commands. `observers` see every
    draft; `late_policy` is `bill` or `waive`, `ConfigurationError` otherwise."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
    from meterline.adapters.dynamodb_catalog import DynamoPlans
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_sending_records import DynamoSendingRecords
    from meterline.adapters.stripe_invoices import StripeInvoices
    from meterline.adapters.stripe_usage import StripeUsage
    from meterline.adapters.threaded_ledger import ThreadedLedger
    from meterline.catalog import load_meters
    from meterline.services.settle_invoices import LatePolicy, SettleInvoices

    if late_policy not in [*LatePolicy]:
        raise ConfigurationError(f"late usage is to bill or waive, not {late_policy!r}")
    return SettleInvoices(
        StripeInvoices(stripe_access),
        DynamoInvoiceChecks(wire, books_table),
        DynamoAccounts(wire, accounts_table),
        ThreadedLedger(DynamoLedger(wire, events_table)),
        DynamoPlans(wire, accounts_table),
        DynamoSendingRecords(wire, emissions_table),
        StripeUsage(stripe_access),
        load_meters(),
        policy=LatePolicy(late_policy),
        observers=observers,
    )


def _check_invoice(
    environment: Environment, wire: DynamoWire, stripe_access: StripeAccess
) -> CheckInvoice:
    """The look at a draft's size, on the way of its settlement."""
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.eventbridge_bus import EventBridgeBus
    from meterline.adapters.stripe_invoice_lines import StripeInvoiceLines
    from meterline.adapters.stripe_invoices import StripeInvoices
    from meterline.services.check_invoice import CheckInvoice

    spikes = require(environment, "INVOICE_SPIKES")
    if spikes not in ("tell", "hold"):
        raise ConfigurationError(f"INVOICE_SPIKES must be tell or hold, is {spikes!r}")
    return CheckInvoice(
        StripeInvoiceLines(stripe_access),
        DynamoGuardrails(wire, require(environment, "ACCOUNTS_TABLE")),
        EventBridgeBus(require(environment, "EVENT_BUS")),
        hold=StripeInvoices(stripe_access).hold if spikes == "hold" else None,
    )


def notify(environment: Environment) -> Notify:
    """What `notify` is made of."""
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.adapters.http_senders import SlackSender, WebhookSender
    from meterline.adapters.secrets_channels import SecretChannels
    from meterline.catalog.messages import load_templates
    from meterline.domain.notifications import Channel
    from meterline.ports import Sender
    from meterline.services.notify import Notify

    wire, accounts_table = DynamoWire(), require(environment, "ACCOUNTS_TABLE")
    settings = SecretChannels(require(environment, "NOTIFICATIONS_SECRET_ID"))
    senders: dict[Channel, Sender] = {
        Channel.SLACK: SlackSender(settings),
        Channel.WEBHOOK: WebhookSender(settings),
    }
    email_sender = require(environment, "EMAIL_SENDER")
    if email_sender != "none":
        from meterline.adapters.ses_sender import SesSender

        senders[Channel.EMAIL] = SesSender(email_sender)
    return Notify(
        DynamoGuardrails(wire, accounts_table),
        DynamoAccounts(wire, accounts_table),
        senders,
        load_templates(),
        require(environment, "SETTINGS_URL"),
    )


def authenticate_and_preview_usage(
    environment: Environment,
) -> tuple[Authenticate, PreviewUsage, RateCards]:
    """What `preview_usage` is made of."""
    from meterline.adapters.dynamodb_budgets import DynamoBudgets
    from meterline.adapters.dynamodb_catalog import DynamoPlans, DynamoRateCards
    from meterline.adapters.dynamodb_controls import DynamoControls
    from meterline.adapters.dynamodb_counters import DynamoCounters
    from meterline.adapters.dynamodb_history import DynamoActionHistory
    from meterline.adapters.dynamodb_ledger import DynamoLedger
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.catalog import load_meters
    from meterline.services.measure_period import MeasurePeriod
    from meterline.services.preview_usage import PreviewUsage

    wire = DynamoWire(pool_size=16)
    accounts_table = require(environment, "ACCOUNTS_TABLE")
    totals_table = require(environment, "TOTALS_TABLE")
    ledger = DynamoLedger(wire, require(environment, "EVENTS_TABLE"))
    return (
        _authenticate(wire, accounts_table),
        PreviewUsage(
            DynamoControls(wire, accounts_table),
            DynamoBudgets(wire, totals_table),
            DynamoActionHistory(wire, totals_table, ledger),
            DynamoPlans(wire, accounts_table),
            load_meters(),
            MeasurePeriod(DynamoCounters(wire, totals_table), ledger),
        ),
        DynamoRateCards(wire, accounts_table),
    )
