"""Usage of a customer whom nobody bills yet: taken, kept, listed with its reason, billed later."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

from infra.local.stack import LocalStack
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import WHY, Api, Run
from tests.e2e.dashboards import count_events
from tests.e2e.test_books import invoke, make_event


def test_usage_of_who_is_not_billed_is_kept_listed_and_billed_once_somebody_does(
    stack: LocalStack, api: Api, stripe_url: str, run: Run
) -> None:
    customer = f"unbilled_{secrets.token_hex(4)}"
    assert api.put_customer(customer).told["subscription"] is None
    # Reconciliation compares hours that are over.
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(minutes=90)
    events = [make_event("one", customer, "2.5", at), make_event("two", customer, "4", at)]
    assert api.report(*events).told["accepted"] == 2
    assert api.report(*events).told["duplicates"] == 2
    await_value(lambda: count_events(stack, customer), 2)

    def listed() -> list[str]:
        lines = [line.split("\t") for line in run("books", "unbilled").stdout.splitlines()]
        return [f"{kind} {code}" for kind, code, whose, *_ in lines if whose == customer]

    await_value(listed, ["refused no_billing_customer"] * 2)
    assert customer not in run("dead-letters", "list").stdout, "nothing is wrong with it"
    # Nobody bills the customer still: a look at it changes nothing.
    assert invoke(stack, "ReconcileUsage", {"customers": [customer]})["failed"] == 0
    assert listed() == ["refused no_billing_customer"] * 2

    billing_customer = make_customer(api, stripe_url, customer)
    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    assert billed.calls() == []
    assert invoke(stack, "ReconcileUsage", {"customers": [customer]})["differ"] == 1
    await_value(billed.total, 6500)
    nothing: list[str] = []
    await_value(listed, nothing)
    looked = invoke(stack, "ReconcileUsage", {"customers": [customer]})
    assert (looked["agree"], looked["differ"]) == (1, 0)
    assert [call["outcome"] for call in billed.calls()] == ["accepted"] * 2


def test_what_is_too_old_for_any_invoice_is_listed_until_somebody_closes_it(
    api: Api, stripe_url: str, run: Run
) -> None:
    customer = f"too_old_{secrets.token_hex(4)}"
    make_customer(api, stripe_url, customer)
    at = datetime.now(UTC) - timedelta(days=40)
    names = ("one", "two", "three")
    assert api.report(*(make_event(name, customer, "2", at) for name in names)).status == 202

    def listed() -> list[str]:
        lines = [line.split("\t") for line in run("books", "unbilled").stdout.splitlines()]
        return [line[6] for line in lines if line[:3] == ["late", "timestamp_too_old", customer]]

    await_value(lambda: len(listed()), 3)
    assert "--all" in run("books", "close", customer, *WHY, ok=False).stderr
    first, *_ = listed()
    told = run("books", "close", customer, first, "ml_unheard_of", *WHY)
    assert told.stdout == f"{first}\tcredits\ttimestamp_too_old\n"
    assert "ml_unheard_of" in told.stderr
    await_value(lambda: first in listed(), False)
    assert len(listed()) == 2
    run("books", "close", customer, "--all", *WHY)
    nothing: list[str] = []
    await_value(listed, nothing)
    assert "nothing was closed" in run("books", "close", customer, "--all", *WHY, ok=False).stderr
    trail = run("books", "audit").stdout
    assert f"ann\tclose\t{customer}#credits/{first}\ttimestamp_too_old\ta test" in trail
