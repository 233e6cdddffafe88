"""Where bills of other systems were wrong, or could not be explained; here each must end well."""

from __future__ import annotations

import io
from copy import copy
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from infra.cli.billing_setup import base_price_params, usage_price_params
from infra.recompute_digest import recompute_digests
from meterline.domain.currencies import to_main_unit
from meterline.domain.pricing import Plan, Tier, price_usage, total_minor
from meterline.domain.usage import EventKey
from meterline.schemas.export import write_csv
from meterline.services.trace_usage import EventPage, SendingState
from meterline_client.reading import read_usage
from tests.faults.invoiced import PRO, Office
from tests.faults.whole_path import METERS, Surroundings, World

CREDITS = METERS["credits"]
START = datetime.now(UTC).replace(minute=20, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("provider", "body", "expected"),
    [
        (
            # Inside the input, as OpenAI counts: 2,000 x 0.417 + 8,000 x 0.042 + 500 x 3.334.
            "openai",
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "gpt-5",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {}}],
                "usage": {
                    "prompt_tokens": 10_000,
                    "completion_tokens": 500,
                    "total_tokens": 10_500,
                    "prompt_tokens_details": {"cached_tokens": 8_000},
                },
            },
            "2.837",
        ),
        (
            # Beside the input, as Anthropic counts: 2,000 x 1 + 8,000 x 0.1 + 500 x 5.
            "anthropic",
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4-5",
                "stop_reason": "end_turn",
                "usage": {
                    "input_tokens": 2_000,
                    "cache_read_input_tokens": 8_000,
                    "cache_creation_input_tokens": 0,
                    "output_tokens": 500,
                },
            },
            "5.3",
        ),
    ],
    ids=["inside the input", "beside the input"],
)
def test_wound_9_cached_tokens_are_billed_once_at_their_own_rate(
    planned: Surroundings, provider: str, body: dict[str, Any], expected: str
) -> None:
    world = World(planned, START)
    read = read_usage(provider, body)
    assert sum(read.kinds.values()) == 10_500, "every token once"
    world.make_event("cached", "credits", 0, provider=provider, model=body["model"])
    data = world.sent["cached"]["data"]
    del data["quantity"]
    data["usage"] = dict(read.kinds)
    world.report(list(world.sent.values()))
    world.drain()
    assert world.check().billed == 1
    [sent] = planned.local.meter_events(customer=str(world.billing_customer))
    assert CREDITS.from_sub_units(int(sent["value"])) == Decimal(expected)


def test_wound_11_an_anchor_on_the_31st_has_one_invoice_a_month_and_no_day_shifts(
    planned: Surroundings,
) -> None:
    # Anchored on 31 January 2027; Europe's summer time begins on 28 March.
    office = Office(World(planned, datetime(2027, 2, 10, 12, tzinfo=UTC)))
    world = office.world
    winter, summer = timezone(timedelta(hours=1)), timezone(timedelta(hours=2))
    ends = [
        datetime(2027, 2, 28, 13, tzinfo=winter),
        datetime(2027, 3, 31, 14, tzinfo=summer),
        datetime(2027, 4, 30, 14, tzinfo=summer),
        datetime(2027, 5, 31, 14, tzinfo=summer),
    ]
    expected: dict[str, str] = {}
    for month, end in enumerate(ends):
        # The last millisecond of the period and the first of the next, as local clocks show them.
        world.clock.set_to(end - timedelta(minutes=1))
        world.make_event(f"last-{month}", "credits", 1, at=end - timedelta(milliseconds=1))
        world.clock.set_to(end)
        world.make_event(f"first-{month}", "credits", 100, at=end)
        world.report([world.sent[f"last-{month}"], world.sent[f"first-{month}"]])
        world.drain()
        draft = office.list_invoices()[-1]
        settled = office.look(draft.id)
        assert settled.check.agrees, settled.check
        [span] = settled.check.spans
        assert span.period.end == end
        assert span.ledger_sub_units == (1000 if month == 0 else 101_000)
        expected[f"last-{month}"] = draft.id
        if month:
            expected[f"first-{month - 1}"] = draft.id
    invoices = office.list_invoices()
    assert len(invoices) == 1 + len(ends), "one when it began, and one a month"
    trace = office.world.around.open_trace()
    found = {
        name: trace.find_event(EventKey(world.customer, "backend", name)).invoice
        for name in expected
    }
    assert {name: check and check.invoice for name, check in found.items()} == expected
    periods = [check.spans[0].period for check in reversed(trace.list_invoices(world.customer))]
    assert [period.end for period in periods] == ends
    assert all(before.end == after.start for before, after in pairwise(periods))


@pytest.mark.parametrize(
    ("currency", "rate", "amount_minor", "main"),
    [
        # 31 x 3.6 = 111.6
        ("jpy", "3.6", 112, "112"),
        ("usd", "3.6", 112, "1.12"),
        # Three decimals, of which Stripe charges only those that end in 0.
        ("kwd", "3.6", 110, "0.110"),
        # Written with two decimals that it has not: 31 x 360 = 11,160.
        ("isk", "360", 11_200, "112.00"),
    ],
)
def test_wound_12_a_line_is_rounded_to_what_its_currency_has(
    planned: Surroundings, currency: str, rate: str, amount_minor: int, main: str
) -> None:
    plan = Plan(f"in_{currency}", "Elsewhere", currency, 0, "credits", (Tier(None, Decimal(rate)),))
    v1 = planned.local.client().v1
    product = v1.products.create({"name": currency}).id
    [meter] = [
        each for each in v1.billing.meters.list({}).data if each.event_name == CREDITS.event_name
    ]
    usage: Any = {**usage_price_params(plan, CREDITS), "product": product}
    usage["recurring"] = {**usage["recurring"], "meter": meter.id}
    base: Any = {**base_price_params(plan), "product": product}
    elsewhere = copy(planned)
    elsewhere.prices = [v1.prices.create(base).id, v1.prices.create(usage).id]
    world = World(elsewhere, START)
    world.make_event("thirty-one", "credits", 31)
    world.report(list(world.sent.values()))
    world.drain()
    assert world.check().billed == 1
    [subscription] = v1.subscriptions.list({"customer": str(world.billing_customer)}).data
    asked = v1.invoices.create_preview({"subscription": subscription.id})
    ours = total_minor(price_usage(Decimal(31), plan))
    assert (asked.currency, asked.total) == (currency, amount_minor)
    assert ours == amount_minor
    assert f"{to_main_unit(ours, currency)}" == main


def test_wound_15_every_line_of_an_invoice_leads_to_its_events_and_back(
    planned: Surroundings,
) -> None:
    office = Office(World(planned, START))
    world = office.world
    for number in range(7):
        world.make_event(f"=part/{number}", "credits", f"{180 + number}.125", user="u 1")
    # One millisecond, two sources: neither hides the other.
    twin = {**world.sent["=part/0"], "source": "+backend"}
    answer = world.report([*world.sent.values(), twin])
    assert answer is not None
    assert answer.accepted == 8
    while world.deliver_records():
        continue
    while (at := world.queue.next_visible_at()) is not None:
        world.clock.set_to(at)
        world.deliver_messages()
    draft = office.go_to_renewal()
    check = office.look(draft.id).check
    assert check.agrees
    [span] = check.spans

    trace = office.world.around.open_trace()
    assert trace.list_invoices(world.customer) == [check]
    pages: list[EventPage] = []
    while not pages or pages[-1].next_after is not None:
        after = pages[-1].next_after if pages else None
        pages.append(trace.events.read_page(check, 3, after))
    entries = [entry for page in pages for entry in page.entries]
    assert [len(page.entries) for page in pages] == [3, 3, 2]
    assert len({entry.key for entry in entries}) == span.events == 8

    # What the invoice asks is the price of just these events, line by line.
    quantity = sum((entry.quantity for entry in entries), Decimal(0))
    assert CREDITS.to_sub_units(quantity) == span.billed_sub_units
    ours = [line.amount_minor for line in price_usage(quantity, PRO)]
    asked = sorted(line.amount for line in draft.lines.data)
    assert asked == sorted([*ours, PRO.base_fee_minor])

    # And back: each is at Stripe under its own identifier, and nothing else of the customer is.
    told = planned.local.meter_events(customer=str(world.billing_customer), outcome="accepted")
    traces = [trace.find_event(entry.key) for entry in entries]
    assert {each.sent.identifier for each in traces} == {each["identifier"] for each in told}
    assert {each.sent.state for each in traces} == {SendingState.SENT}
    assert all(each.sent.batch for each in traces)
    assert {each.invoice.invoice for each in traces if each.invoice} == {draft.id}
    assert all(each.line == span for each in traces)

    # Whoever has the list as CSV can tell that it and the bill belong together.
    files = [io.StringIO(write_csv(page.entries), newline="") for page in pages]
    assert list(recompute_digests(files)) == [("credits", 8, span.digest)]
    short = [io.StringIO(write_csv(page.entries), newline="") for page in pages[:-1]]
    assert list(recompute_digests(short)) != [("credits", 8, span.digest)]
