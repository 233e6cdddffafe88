"""Usage that the stream has lost, on the deployed stack: found, counted and billed, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from infra.local.stack import LocalStack
from meterline.adapters.dynamodb_ledger import write_item
from meterline.domain.usage import EventKey, LedgerEntry
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import WHY, Api, Run
from tests.e2e.dashboards import count_events
from tests.e2e.test_books import invoke, make_event


def make_entry(customer: str, event_id: str, quantity: int) -> LedgerEntry:
    """An entry of an hour that is over for two hours, received then."""
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(
        hours=2, minutes=1
    )
    key = EventKey(customer, "lost", event_id)
    return LedgerEntry(key, at, "credits", Decimal(quantity), event_id.encode() * 4, at)


def lose(stack: LocalStack, api: Api, entry: LedgerEntry) -> None:
    """Have it in the ledger, and its record in the stream unreadable: as for an older version."""
    table, dynamodb = stack.outputs["EventsTable"], stack.client("dynamodb")
    item = write_item(entry, "AAAAAAAA")
    before = count_events(stack, entry.key.customer)
    dynamodb.put_item(TableName=table, Item=item | {"m": {"S": "of_a_later_version"}})
    # The stream has one shard: what comes behind the record says that it has been read.
    marker = make_event(f"behind-{entry.key.id}", entry.key.customer, "1", datetime.now(UTC))
    assert api.report(marker).told["accepted"] == 1
    await_value(lambda: count_events(stack, entry.key.customer), before + 1)
    dynamodb.put_item(TableName=table, Item=item)


def test_what_the_stream_lost_is_counted_by_reconciliation_or_by_the_operator_once(
    stack: LocalStack, api: Api, stripe_url: str, run: Run
) -> None:
    customer = "lost_usage"
    billing_customer = make_customer(api, stripe_url, customer)
    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    first = make_entry(customer, "one", 5)
    lose(stack, api, first)
    # The operator sees it by name, and it is counted by reconciliation.
    from_then = ("--from", f"{first.at - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}")
    span = (*from_then, *WHY)
    listed = run("books", "recount", customer, *from_then, "--dry-run").stdout
    assert [line.split("\t")[:2] for line in listed.splitlines()] == [["lost", "one"]]
    looked = invoke(stack, "ReconcileUsage", {"customers": [customer]})
    assert (looked["customers"], looked["failed"]) == (1, 0), [
        line for line in stack.read_logs("ReconcileUsage") if "not compared" in line
    ]
    await_value(billed.total, 6000)
    # The next one is counted by the operator, as often as they like.
    lose(stack, api, make_entry(customer, "two", 7))
    told = run("books", "recount", customer, *span).stdout
    assert told == f"{customer}#credits\t1 events, 7000 sub-units\n"
    assert run("books", "recount", customer, *span).stdout == ""
    await_value(billed.total, 14000)
    # What a stream brings so late that it may have been recounted goes past the fence.
    late = make_entry(customer, "three", 11)
    stack.client("dynamodb").put_item(
        TableName=stack.outputs["EventsTable"], Item=write_item(late, "AAAAAAAA")
    )
    await_value(billed.total, 25000)
    assert run("books", "recount", customer, *span).stdout == ""
    assert count_events(stack, customer) == 5
    assert f"recount\t{customer}#credits\t1 events, 7000 sub-units" in run("books", "audit").stdout
