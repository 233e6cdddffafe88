"""What the other tests here do not come by, with every function held to its role."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.local.run import open_wire
from infra.local.stack import LocalStack
from infra.local.stripe_account import StripeAccount
from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
from meterline.domain.invoice_checks import CheckState
from tests.e2e.billed import BilledUsage, await_value
from tests.e2e.conftest import STRIPE_KEY, Api, Webhooks
from tests.e2e.dashboards import count_events
from tests.e2e.test_authorizations import ask, set_limits
from tests.e2e.test_books import invoke, make_event
from tests.e2e.test_previews import preview


@dataclass(frozen=True, slots=True)
class Latecomer:
    """A customer that used 8 credits in this very hour, and then subscribed."""

    id: str
    stack: LocalStack

    def budget(self) -> dict[str, Any]:
        """What its authorizations are held against, as it is kept."""
        found = self.stack.client("dynamodb").get_item(
            TableName=self.stack.outputs["TotalsTable"],
            Key={"pk": {"S": f"{self.id}#credits"}, "sk": {"S": "budget"}},
            ConsistentRead=True,
        )
        return dict(found.get("Item", {}))


@pytest.fixture
def latecomer(
    stack: LocalStack,
    api: Api,
    stripe_url: str,
    webhooks: Webhooks,
) -> Latecomer:
    """Its period begins within an hour, so that the hour must be split between two periods."""
    assert webhooks.url
    name = f"latecomer_{secrets.token_hex(4)}"
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    v1 = account.client.v1
    billed = v1.customers.create({"name": name})
    assert api.put_customer(name, billing_customer=billed.id).status == 200
    # A subscription begins on a whole second.
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert api.report(make_event("before", name, "8", before)).told["accepted"] == 1
    # Nobody bills it: it was used before there was a subscription. It is counted all the same.
    await_value(lambda: count_events(stack, name), 1)
    prices = account.prices
    v1.subscriptions.create(
        {
            "customer": billed.id,
            "items": [{"price": prices["base"]}, {"price": prices["metered"]}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    accounts = stack.client("dynamodb")

    def is_known() -> bool:
        key = {"pk": {"S": f"customer#{name}"}, "sk": {"S": "subscription"}}
        table = stack.outputs["AccountsTable"]
        return "Item" in accounts.get_item(TableName=table, Key=key, ConsistentRead=True)

    await_value(is_known, True)
    return Latecomer(name, stack)


def test_leave_to_spend_counts_from_the_second_at_which_the_period_began(
    latecomer: Latecomer, api: Api
) -> None:
    set_limits(api, latecomer.id, stop_at={"quantity": "10"})
    assert ask(api, latecomer.id, "10.001").told["decision"] == "deny"
    assert ask(api, latecomer.id, "10").told["decision"] == "allow"


def test_a_preview_counts_from_the_second_at_which_the_period_began(
    latecomer: Latecomer, api: Api
) -> None:
    told = preview(api, customer=latecomer.id, estimate={"quantity": "1"}).told
    assert told["used"] == "0"


def test_the_scan_begins_a_period_that_nobody_asked_for(
    latecomer: Latecomer, stack: LocalStack
) -> None:
    assert invoke(stack, "WatchBreakers", {})["budgets"] >= 1
    budget = latecomer.budget()
    assert (budget["used"]["N"], budget["committed"]["N"]) == ("0", "0")


def test_usage_after_the_invoice_is_final_is_an_item_on_the_next_one(
    stack: LocalStack, api: Api, stripe_url: str, webhooks: Webhooks
) -> None:
    assert webhooks.url
    customer = "rare_late"
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    now = datetime.now(UTC)
    start = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=33)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, start + timedelta(days=20))
    assert api.put_customer(customer, billing_customer=subscriber.billing_customer).status == 200
    at = start + timedelta(days=15)
    assert api.report(make_event("in-time", customer, "1200", at)).told["accepted"] == 1
    billed = BilledUsage(stripe_url, subscriber.billing_customer, "meterline_credits")
    await_value(billed.total, 1_200_000)
    account.advance(subscriber, subscriber.period_end + timedelta(hours=3))
    invoices = account.client.v1.invoices
    listed = invoices.list({"subscription": subscriber.subscription}).data
    # The first one asked for the first period's base alone.
    final = max(listed, key=lambda each: each.created)
    assert (final.status, len(listed)) == ("open", 2)
    checks = DynamoInvoiceChecks(open_wire(stack), stack.outputs["BooksTable"])

    def is_checked() -> bool:
        check = checks.get(str(final.id))
        return check is not None and check.state is CheckState.FINAL

    # Until then the function behind the webhooks may settle what is late as well.
    await_value(is_checked, True)
    assert api.report(make_event("late", customer, "400", at)).told["accepted"] == 1

    def preview_next() -> int:
        invoke(stack, "SettleInvoices", {})
        coming = invoices.create_preview({"subscription": subscriber.subscription}).to_dict()
        return int(coming["total"])

    # 1,000 credits are included; 400 more at half a cent, beside the new period's base.
    await_value(preview_next, 2900 + 200)


def test_a_record_that_cannot_be_read_is_set_aside_and_holds_up_nothing(
    stack: LocalStack, api: Api, stripe_url: str
) -> None:
    queue = stack.outputs["ProjectionDeadLetterQueueUrl"]
    sqs = stack.client("sqs")
    stack.client("dynamodb").put_item(
        TableName=stack.outputs["EventsTable"],
        Item={"k": {"S": "unreadable"}, "d": {"S": "nobody"}, "t": {"S": "never"}},
    )
    found: list[str] = []

    def is_set_aside() -> bool:
        for message in sqs.receive_message(QueueUrl=queue).get("Messages", []):
            found.append(json.dumps(message["Body"]))
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return any("unreadable" in body for body in found)

    await_value(is_set_aside, True)
