"""The books on the deployed stack: reconciled on demand, and an invoice held and let go."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.local.stack import LocalStack
from infra.local.stripe_account import StripeAccount, Subscriber
from infra.local.stripe_server import StripeControl
from meterline.domain.invoice_checks import HoldReason
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, WHY, Api, Run, Webhooks


def invoke(stack: LocalStack, function: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Call a scheduled function now; its answer."""
    answer = stack.client("lambda").invoke(
        FunctionName=stack.outputs[f"{function}FunctionName"], Payload=json.dumps(payload).encode()
    )
    told = answer["Payload"].read()
    assert "FunctionError" not in answer, told
    read: dict[str, Any] = json.loads(told)
    return read


def make_event(event_id: str, customer: str, quantity: str, at: datetime) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "books",
        "type": "meterline.usage",
        "subject": customer,
        "time": at.isoformat(),
        "data": {"meter": "credits", "quantity": quantity},
    }


@pytest.fixture(scope="module")
def control(webhooks: Webhooks, stripe_url: str) -> StripeControl:
    """This session's Stripe, whose webhooks go to this session's stack."""
    assert webhooks.secrets
    return StripeControl(stripe_url, STRIPE_KEY)


def test_what_stripe_never_got_is_found_sent_again_and_agrees(
    stack: LocalStack, api: Api, stripe_url: str, control: StripeControl
) -> None:
    customer = "books_reconciled"
    billing_customer = make_customer(api, stripe_url, customer)
    at = datetime.now(UTC) - timedelta(hours=2)
    assert api.report(make_event("one", customer, "1.5", at)).status == 202
    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    await_value(billed.total, 1500)
    agreed = invoke(stack, "ReconcileUsage", {"customers": [customer]})
    assert (agreed["agree"], agreed["differ"], agreed["failed"]) == (1, 0, 0)
    # Somebody sends usage of ours that we know nothing of.
    control.client().v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "identifier": "foreign-to-books",
            "timestamp": int(at.timestamp()),
            "payload": {"stripe_customer_id": billing_customer, "value": "77"},
        }
    )
    differs = invoke(stack, "ReconcileUsage", {"customers": [customer]})
    assert (differs["agree"], differs["differ"], differs["diverge"]) == (0, 1, 1)
    logs = "\n".join(stack.read_logs("ReconcileUsage"))
    assert '"foreign":-77' in logs.replace(" ", "")
    everybody = invoke(stack, "ReconcileUsage", {})
    assert everybody["failed"] == 0
    assert everybody["customers"] >= 1


def _subscribe_last_month(
    customer: str, api: Api, stripe_url: str
) -> tuple[StripeAccount, Subscriber, datetime]:
    """A customer in the last third of a period that began 33 days ago, and a moment amid it."""
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    now = datetime.now(UTC)
    start = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=33)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, start + timedelta(days=20))
    put = api.put_customer(customer, billing_customer=subscriber.billing_customer)
    assert put.status == 200
    return account, subscriber, start + timedelta(days=15)


def test_a_draft_that_differs_is_held_by_its_webhook_and_let_go_when_it_agrees(
    stack: LocalStack, api: Api, stripe_url: str, control: StripeControl
) -> None:
    customer = "books_invoiced"
    account, subscriber, at = _subscribe_last_month(customer, api, stripe_url)
    assert api.report(make_event("in-time", customer, "1200", at)).status == 202
    billed = BilledUsage(stripe_url, subscriber.billing_customer, "meterline_credits")
    await_value(billed.total, 1_200_000)
    # Stripe counts 5 credits more than anybody used: the draft is wrong from the start.
    client = control.client()
    client.v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "identifier": "foreign-to-invoice",
            "timestamp": int(at.timestamp()),
            "payload": {"stripe_customer_id": subscriber.billing_customer, "value": "5000"},
        }
    )
    account.advance(subscriber, subscriber.period_end + timedelta(minutes=1))
    [draft] = [
        each
        for each in client.v1.invoices.list({"subscription": subscriber.subscription}).data
        if each.status == "draft"
    ]

    def held_for() -> bool:
        found = client.v1.invoices.retrieve(draft.id)
        marks = found.metadata.to_dict() if found.metadata is not None else {}
        return not found.auto_advance and HoldReason.DIFFERENCE in marks

    await_value(held_for, True)
    assert invoke(stack, "SettleInvoices", {})["InvoicesHeld"] == 1
    # The operator takes the foreign usage away; the next look lets the invoice go.
    client.v1.billing.meter_event_adjustments.create(
        {
            "event_name": "meterline_credits",
            "type": "cancel",
            "cancel": {"identifier": "foreign-to-invoice"},
        }
    )
    assert invoke(stack, "SettleInvoices", {})["InvoicesHeld"] == 0
    assert not held_for()
    account.advance(subscriber, subscriber.period_end + timedelta(hours=3))
    final = client.v1.invoices.retrieve(draft.id)
    assert (final.status, final.total) == ("open", 2900 + 100)


def test_what_is_late_for_a_void_invoice_is_told_of_until_a_person_decides(
    stack: LocalStack, api: Api, stripe_url: str, control: StripeControl, run: Run
) -> None:
    customer = "books_void"
    account, subscriber, at = _subscribe_last_month(customer, api, stripe_url)
    account.advance(subscriber, subscriber.period_end + timedelta(hours=3))
    client = control.client()
    [invoice, *_] = client.v1.invoices.list({"subscription": subscriber.subscription}).data
    assert invoice.status == "open"
    client.v1.invoices.void_invoice(invoice.id)
    assert api.report(make_event("late", customer, "40", at)).status == 202

    def unbilled() -> list[list[str]]:
        lines = [line.split("\t") for line in run("books", "unbilled").stdout.splitlines()]
        return [line for line in lines if line[2] == customer]

    await_value(lambda: [line[:2] for line in unbilled()], [["late", "period_final"]])
    identifier = unbilled()[0][6]
    await_value(lambda: invoke(stack, "SettleInvoices", {})["InvoicesDiffer"], 1)
    refused = run("books", "close", customer, identifier, *WHY, ok=False)
    assert f"{invoice.id} settles it" in refused.stderr
    options = ("--stripe-url", stripe_url, *WHY)
    waived = run("books", "waive", invoice.id, *options).stdout
    assert "settled 40000" in waived
    again = run("books", "waive", invoice.id, *options, ok=False)
    assert "waits for a decision" in again.stderr
    nothing: list[list[str]] = []
    await_value(unbilled, nothing)
    assert invoke(stack, "SettleInvoices", {})["InvoicesDiffer"] == 0
    assert f"ann\twaive\t{invoice.id}\twaived\ta test" in run("books", "audit").stdout
