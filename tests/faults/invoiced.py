"""A world whose customer has the real plan, so that its invoices can be settled to the cent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import stripe

from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
from meterline.adapters.dynamodb_sending_records import DynamoSendingRecords
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_invoices import StripeInvoices
from meterline.adapters.stripe_usage import StripeUsage
from meterline.catalog import load_plans
from meterline.domain.pricing import Plan
from meterline.services.recheck_invoices import Recheck, RecheckInvoices
from meterline.services.settle_invoices import LatePolicy, Observer, SettleInvoices
from tests.faults.whole_path import METERS, StreamTail, Surroundings, World

PLANS = load_plans()
PRO = PLANS["pro"]


class PlannedSurroundings(Surroundings):
    """Surroundings whose Stripe was set up by the setup command, from the catalog."""

    def __post_init__(self) -> None:
        self.tail = StreamTail(self.store)
        self.wire = self.store.wire()
        client = self.local.client()
        targets = Targets({}, {}, None, None)
        plans = load_plans()
        changes = plan_changes(read_account(client, plans, targets), METERS, plans, targets)
        ids = apply(client, changes).ids
        self.prices = [ids["price", "pro.base"], ids["price", "pro.usage"]]


@dataclass
class CatalogPlans:
    """The same plans at any time: those of the catalog, or others."""

    plans: Mapping[str, Plan] | None = None

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        """The plans by id."""
        return PLANS if self.plans is None else self.plans


@dataclass
class Office:
    """One world, and the check of its invoices."""

    world: World
    policy: LatePolicy = LatePolicy.BILL
    observers: tuple[Observer, ...] = ()

    def __post_init__(self) -> None:
        store, wire = self.world.around.store, self.world.around.wire
        self.stripe = self.world.around.local.client()
        self.checks = DynamoInvoiceChecks(wire, store.tables.books)
        self.records = DynamoSendingRecords(wire, store.tables.emissions)
        access = StripeAccess(
            lambda: self.world.around.local.key, api_base=self.world.around.local.url
        )
        self.invoices, self.counted = StripeInvoices(access), StripeUsage(access)

    def settlement(
        self, invoices: Any = None, plans: Mapping[str, Plan] | None = None
    ) -> SettleInvoices:
        """The service; `invoices` may stand in front of Stripe's, `plans` for the catalog's."""
        store, wire = self.world.around.store, self.world.around.wire
        return SettleInvoices(
            invoices or self.invoices,
            self.checks,
            DynamoAccounts(wire, store.tables.accounts),
            store.ledger(wire),
            CatalogPlans(plans),
            self.records,
            self.counted,
            METERS,
            policy=self.policy,
            observers=self.observers,
        )

    def look(self, invoice: str) -> Any:
        """One check of one invoice."""
        return self.settlement()(invoice, self.world.clock.now())

    def recheck(self) -> Recheck:
        """One run of the schedule."""
        run = RecheckInvoices(self.checks, self.records, self.settlement())
        found = run(self.world.clock.now())
        assert not found.failed, found.failed
        return found

    def list_late(self) -> list[datetime]:
        """When each late event of the customer's was used that is not settled."""
        return [
            at for customer, _, at in self.records.list_late() if customer == self.world.customer
        ]

    def list_invoices(self) -> list[stripe.Invoice]:
        """The customer's invoices, oldest first."""
        listed = self.stripe.v1.invoices.list(
            {"customer": str(self.world.billing_customer), "limit": 100}
        )
        return [*reversed(list(listed.auto_paging_iter()))]

    def get(self, invoice: str) -> stripe.Invoice:
        """One invoice as it is now."""
        return self.stripe.v1.invoices.retrieve(invoice)

    def items(self) -> list[stripe.InvoiceItem]:
        """The customer's invoice items, oldest first."""
        listed = self.stripe.v1.invoice_items.list(
            {"customer": str(self.world.billing_customer), "limit": 100}
        )
        return [*reversed(list(listed.auto_paging_iter()))]

    def go_to_renewal(self) -> stripe.Invoice:
        """A minute into the next period; the draft that is there then."""
        [subscription] = self.stripe.v1.subscriptions.list(
            {"customer": str(self.world.billing_customer)}
        ).data
        end_s = subscription.to_dict()["items"]["data"][0]["current_period_end"]
        now = self.world.clock.now()
        self.world.clock.set_to(
            now + timedelta(seconds=end_s - int(now.timestamp())) + timedelta(minutes=1)
        )
        draft = self.list_invoices()[-1]
        assert draft.status == "draft"
        return draft
