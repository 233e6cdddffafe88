"""From usage to the invoice: periods, drafts, lines, finalisation and what comes after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.contract.conftest import DAY_S, HOUR_S, StripeUnderTest, Subscribed

Refused = Callable[[Callable[[], object]], stripe.StripeError]


def _usage_amounts(invoice: dict[str, Any], subscribed: Subscribed) -> list[int]:
    return [
        line["amount"]
        for line in invoice["lines"]["data"]
        if line["parent"]["subscription_item_details"]
        and line["parent"]["subscription_item_details"]["subscription_item"]
        == subscribed.usage_item
        and (line["quantity"] or line["amount"])
    ]


def _preview(account: StripeUnderTest, subscribed: Subscribed) -> dict[str, Any]:
    preview: dict[str, Any] = account.client.v1.invoices.create_preview(
        {"customer": subscribed.customer, "subscription": subscribed.subscription}
    ).to_dict()
    return preview


def _use(account: StripeUnderTest, subscribed: Subscribed, value: int, at: int) -> None:
    account.send(subscribed.event_name, subscribed.customer, value, timestamp=at)


def _settle_usage(account: StripeUnderTest, subscribed: Subscribed, total: int) -> None:
    account.wait_counted(
        total, subscribed.meter, subscribed.customer, subscribed.start, subscribed.end
    )


def _draft(account: StripeUnderTest, subscribed: Subscribed) -> dict[str, Any]:
    """Move just past the period's end, before the draft is finalised."""
    account.advance(subscribed.clock, subscribed.end + 60)
    return account.invoices(subscribed.subscription, "subscription_cycle")[0]


def test_the_first_invoice_bills_the_flat_price_and_is_paid_at_once(
    account: StripeUnderTest,
) -> None:
    subscribed = account.subscribe()
    first = account.invoices(subscribed.subscription, "subscription_create")[0]
    assert (first["status"], first["total"]) == ("paid", 2900)
    assert _usage_amounts(first, subscribed) == []


def test_the_period_is_on_the_items_and_lasts_a_month(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    shown = account.client.v1.subscriptions.retrieve(subscribed.subscription).to_dict()
    assert shown["status"] == "active"
    assert "current_period_end" not in shown
    for item in shown["items"]["data"]:
        assert item["current_period_start"] == subscribed.start
        assert 28 * DAY_S <= item["current_period_end"] - subscribed.start <= 31 * DAY_S


def test_the_preview_holds_a_line_per_tier_reached_and_the_next_flat_fee(
    account: StripeUnderTest,
) -> None:
    subscribed = account.subscribe()
    _use(account, subscribed, 1501, subscribed.start + 60)
    _settle_usage(account, subscribed, 1501)
    preview = account.eventually(
        lambda: _preview(account, subscribed), lambda invoice: invoice["total"] != 2900
    )
    assert _usage_amounts(preview, subscribed) == [0, 251]
    assert preview["total"] == 2900 + 251


def test_each_tiers_line_is_rounded_by_itself_half_up(account: StripeUnderTest) -> None:
    subscribed = account.subscribe(
        [
            {"up_to": 3, "unit_amount_decimal": Decimal("0.5")},
            {"up_to": 6, "unit_amount_decimal": Decimal("0.5")},
            {"up_to": "inf", "unit_amount_decimal": Decimal("3.6")},
        ]
    )
    _use(account, subscribed, 37, subscribed.start + 60)
    _settle_usage(account, subscribed, 37)
    draft = _draft(account, subscribed)
    # 1.5 -> 2, 1.5 -> 2, 31 x 3.6 = 111.6 -> 112: together 114.6, rounded once, would be 115.
    assert _usage_amounts(draft, subscribed) == [2, 2, 112]


def test_a_flat_amount_of_a_tier_is_a_line_of_its_own(account: StripeUnderTest) -> None:
    subscribed = account.subscribe(
        [
            {"up_to": 10, "unit_amount_decimal": Decimal(1), "flat_amount": 300},
            {"up_to": "inf", "unit_amount_decimal": Decimal(2), "flat_amount": 700},
        ]
    )
    _use(account, subscribed, 15, subscribed.start + 60)
    _settle_usage(account, subscribed, 15)
    draft = _draft(account, subscribed)
    assert sorted(_usage_amounts(draft, subscribed)) == [10, 10, 300, 700]


def test_a_tiers_end_is_inclusive(account: StripeUnderTest) -> None:
    subscribed = account.subscribe(
        [
            {"up_to": 10, "unit_amount_decimal": Decimal(1)},
            {"up_to": "inf", "unit_amount_decimal": Decimal(100)},
        ]
    )
    _use(account, subscribed, 10, subscribed.start + 60)
    _settle_usage(account, subscribed, 10)
    assert sum(_usage_amounts(_draft(account, subscribed), subscribed)) == 10


def test_usage_below_zero_bills_zero(account: StripeUnderTest) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    _use(account, subscribed, -50, subscribed.start + 60)
    _settle_usage(account, subscribed, -50)
    draft = _draft(account, subscribed)
    assert sum(_usage_amounts(draft, subscribed)) == 0
    assert draft["total"] == 2900


def test_a_draft_waits_an_hour_and_takes_late_usage_until_then(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    _use(account, subscribed, 2000, subscribed.start + 60)
    _settle_usage(account, subscribed, 2000)
    draft = _draft(account, subscribed)
    assert draft["status"] == "draft"
    assert draft["auto_advance"] is True
    assert draft["automatically_finalizes_at"] - draft["created"] == HOUR_S
    assert (draft["period_start"], draft["period_end"]) == (subscribed.start, subscribed.end)
    _use(account, subscribed, 100, subscribed.end - 60)
    _settle_usage(account, subscribed, 2100)
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    final = account.client.v1.invoices.retrieve(draft["id"]).to_dict()
    assert final["status"] == "paid"
    assert final["number"]
    assert final["status_transitions"]["finalized_at"]
    assert _usage_amounts(final, subscribed) == [0, 550]


def test_usage_that_comes_after_finalisation_is_on_no_invoice(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    _use(account, subscribed, 2000, subscribed.start + 60)
    _settle_usage(account, subscribed, 2000)
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    final = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    _use(account, subscribed, 5000, subscribed.end - 60)
    _settle_usage(account, subscribed, 7000)
    after = account.client.v1.invoices.retrieve(final["id"]).to_dict()
    assert after["total"] == final["total"] == 2900 + 500
    assert _usage_amounts(after, subscribed) == _usage_amounts(final, subscribed) == [0, 500]
    assert sum(_usage_amounts(_preview(account, subscribed), subscribed)) == 0


def test_usage_at_the_boundary_belongs_to_the_period_that_begins(
    account: StripeUnderTest,
) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    account.advance(subscribed.clock, subscribed.end + 60)
    _use(account, subscribed, 7, subscribed.end - 1)
    _use(account, subscribed, 30, subscribed.end)
    account.wait_counted(
        37, subscribed.meter, subscribed.customer, subscribed.start, subscribed.end + HOUR_S
    )
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    final = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    assert sum(_usage_amounts(final, subscribed)) == 7
    assert sum(_usage_amounts(_preview(account, subscribed), subscribed)) == 30


def test_a_draft_with_auto_advance_off_is_held_until_it_is_finalised_by_hand(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    draft = _draft(account, subscribed)
    held = account.client.v1.invoices.update(draft["id"], {"auto_advance": False})
    assert held.automatically_finalizes_at is None
    account.advance(subscribed.clock, subscribed.end + 3 * DAY_S)
    assert account.client.v1.invoices.retrieve(draft["id"]).status == "draft"
    final = account.client.v1.invoices.finalize_invoice(draft["id"])
    assert final.status == "open"
    error = refused(lambda: account.client.v1.invoices.finalize_invoice(draft["id"]))
    assert error.http_status == 400


def test_a_negative_item_on_a_draft_lowers_it(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    draft = _draft(account, subscribed)
    item = account.client.v1.invoice_items.create(
        {
            "customer": subscribed.customer,
            "invoice": draft["id"],
            "amount": -400,
            "currency": "usd",
            "description": "Credit",
        }
    )
    assert item.invoice == draft["id"]
    assert account.client.v1.invoices.retrieve(draft["id"]).total == 2500


def test_a_pending_item_is_taken_by_the_next_renewal(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    account.client.v1.invoice_items.create(
        {"customer": subscribed.customer, "amount": 150, "currency": "usd"}
    )
    assert _preview(account, subscribed)["total"] == 3050
    assert _draft(account, subscribed)["total"] == 3050


def test_the_items_of_a_final_invoice_do_not_change(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    final = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    error = refused(
        lambda: account.client.v1.invoice_items.create(
            {
                "customer": subscribed.customer,
                "invoice": final["id"],
                "amount": -1,
                "currency": "usd",
            }
        )
    )
    assert error.http_status == 400


def test_a_credit_note_on_a_paid_invoice_becomes_customer_balance(
    account: StripeUnderTest,
) -> None:
    subscribed = account.subscribe()
    first = account.invoices(subscribed.subscription, "subscription_create")[0]
    note = account.client.v1.credit_notes.create(
        {"invoice": first["id"], "amount": 900, "credit_amount": 900}
    )
    assert (note.total, note.status) == (900, "issued")
    assert account.client.v1.customers.retrieve(subscribed.customer).balance == -900
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    renewal = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    assert (renewal["total"], renewal["amount_due"]) == (2900, 2000)
    assert renewal["starting_balance"] == -900
    assert account.client.v1.customers.retrieve(subscribed.customer).balance == 0


def test_a_credit_note_above_the_invoice_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    first = account.invoices(subscribed.subscription, "subscription_create")[0]
    error = refused(
        lambda: account.client.v1.credit_notes.create(
            {"invoice": first["id"], "amount": 2901, "credit_amount": 2901}
        )
    )
    assert error.http_status == 400


def test_a_manual_invoice_is_finalised_and_voided(account: StripeUnderTest) -> None:
    customer = account.make_customer()
    invoices = account.client.v1.invoices
    draft = invoices.create(
        {"customer": customer, "collection_method": "send_invoice", "days_until_due": 30}
    )
    account.client.v1.invoice_items.create(
        {"customer": customer, "invoice": draft.id, "amount": 1000, "currency": "usd"}
    )
    final = invoices.finalize_invoice(draft.id)
    assert (final.status, final.amount_due) == ("open", 1000)
    assert invoices.void_invoice(draft.id).status == "void"


def test_auto_advance_can_be_changed_while_an_invoice_is_open_and_is_off_afterwards(
    account: StripeUnderTest,
) -> None:
    customer, invoices = account.make_customer(), account.client.v1.invoices
    name = invoices.create(
        {"customer": customer, "collection_method": "send_invoice", "days_until_due": 30}
    ).id
    account.client.v1.invoice_items.create(
        {"customer": customer, "invoice": name, "amount": 1000, "currency": "usd"}
    )
    assert invoices.finalize_invoice(name, {"auto_advance": True}).status == "open"
    for wanted in (False, True):
        assert invoices.update(name, {"auto_advance": wanted}).auto_advance is wanted
    assert invoices.void_invoice(name).auto_advance is False
    # Whether it is refused or taken for nothing is not documented.
    with suppress(stripe.InvalidRequestError):
        invoices.update(name, {"auto_advance": True})
    assert invoices.retrieve(name).auto_advance is False


def test_a_metered_item_added_later_bills_later_usage_only(account: StripeUnderTest) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    meter = account.make_meter()
    _, late_price = account.make_prices(
        meter.id, [{"up_to": "inf", "unit_amount_decimal": Decimal(1)}]
    )
    account.send(meter.event_name, subscribed.customer, 40, timestamp=subscribed.start + 60)
    account.advance(subscribed.clock, subscribed.start + 10 * DAY_S)
    item = account.client.v1.subscription_items.create(
        {
            "subscription": subscribed.subscription,
            "price": late_price,
            "proration_behavior": "none",
        }
    )
    at = subscribed.start + 10 * DAY_S + 60
    account.send(meter.event_name, subscribed.customer, 2, timestamp=at)
    account.wait_counted(42, meter.id, subscribed.customer, subscribed.start, subscribed.end)
    later = Subscribed(**{**vars(subscribed), "usage_item": item.id})
    preview = account.eventually(
        lambda: _preview(account, subscribed),
        lambda invoice: bool(_usage_amounts(invoice, later)),
    )
    assert _usage_amounts(preview, later) == [2]


@pytest.mark.parametrize(("behavior", "settled"), [("create_prorations", [10]), ("none", [])])
def test_a_metered_price_that_is_switched_settles_its_usage_and_the_new_one_bills_from_then(
    account: StripeUnderTest, behavior: Any, settled: list[int]
) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    _, dearer = account.make_prices(
        subscribed.meter, [{"up_to": "inf", "unit_amount_decimal": Decimal(3)}]
    )
    _use(account, subscribed, 10, subscribed.start + 60)
    _settle_usage(account, subscribed, 10)
    switched = subscribed.start + 10 * DAY_S
    account.advance(subscribed.clock, switched)
    account.client.v1.subscription_items.update(
        subscribed.usage_item, {"price": dearer, "proration_behavior": behavior}
    )
    _use(account, subscribed, 4, switched + 60)
    _settle_usage(account, subscribed, 14)
    pending = account.client.v1.invoice_items.list(
        {"customer": subscribed.customer, "pending": True}
    )
    assert [item.amount for item in pending.data] == settled
    assert _usage_amounts(_preview(account, subscribed), subscribed) == [12]


def test_a_metered_item_takes_no_quantity(account: StripeUnderTest, refused: Refused) -> None:
    subscribed = account.subscribe()
    error = refused(
        lambda: account.client.v1.subscription_items.update(subscribed.usage_item, {"quantity": 5})
    )
    assert error.http_status == 400


def test_the_same_price_twice_on_a_subscription_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    error = refused(
        lambda: account.client.v1.subscription_items.create(
            {"subscription": subscribed.subscription, "price": subscribed.usage_price}
        )
    )
    assert error.http_status == 400


def test_cancelling_at_the_periods_end_bills_the_last_usage_and_no_new_fee(
    account: StripeUnderTest,
) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    changed = account.client.v1.subscriptions.update(
        subscribed.subscription, {"cancel_at_period_end": True}
    )
    assert changed.cancel_at_period_end
    _use(account, subscribed, 55, subscribed.start + 60)
    _settle_usage(account, subscribed, 55)
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    ended = account.client.v1.subscriptions.retrieve(subscribed.subscription)
    assert (ended.status, ended.ended_at) == ("canceled", subscribed.end)
    last = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    assert last["total"] == 55


def test_cancelling_now_can_bill_the_usage_so_far(account: StripeUnderTest) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    _use(account, subscribed, 70, subscribed.start + 60)
    account.advance(subscribed.clock, subscribed.start + DAY_S)
    _settle_usage(account, subscribed, 70)
    ended = account.client.v1.subscriptions.cancel(subscribed.subscription, {"invoice_now": True})
    assert ended.status == "canceled"
    invoices = account.client.v1.invoices
    totals = account.eventually(
        lambda: sorted(
            row.total for row in invoices.list({"subscription": subscribed.subscription}).data
        ),
        lambda rows: len(rows) == 2,
    )
    assert totals == [70, 2900]


def test_a_trial_bills_nothing_until_it_ends(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    clock = account.make_clock(subscribed.start)
    customer = account.make_customer(clock)
    trial_end = subscribed.start + 10 * DAY_S
    trial = account.client.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": subscribed.flat_price}],
            "trial_end": trial_end,
        }
    ).to_dict()
    assert trial["status"] == "trialing"
    assert trial["items"]["data"][0]["current_period_end"] == trial_end
    account.advance(clock, trial_end + 2 * HOUR_S)
    assert account.client.v1.subscriptions.retrieve(trial["id"]).status == "active"
    assert account.invoices(trial["id"], "subscription_cycle")[0]["total"] == 2900


def test_a_subscription_without_any_way_to_pay_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    customer = account.make_customer(card=False)
    error = refused(
        lambda: account.client.v1.subscriptions.create(
            {"customer": customer, "items": [{"price": subscribed.flat_price}]}
        )
    )
    assert (error.http_status, error.code) == (400, "resource_missing")


def test_a_plan_is_switched_at_renewal_by_a_schedule(account: StripeUnderTest) -> None:
    subscribed = account.subscribe([{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    new_flat, new_usage = account.make_prices(
        subscribed.meter, [{"up_to": "inf", "unit_amount_decimal": Decimal(3)}], flat=4900
    )
    schedules = account.client.v1.subscription_schedules
    schedule = schedules.create({"from_subscription": subscribed.subscription})
    schedules.update(
        schedule.id,
        {
            "end_behavior": "release",
            "phases": [
                {
                    "items": [
                        {"price": subscribed.flat_price, "quantity": 1},
                        {"price": subscribed.usage_price},
                    ],
                    "start_date": subscribed.start,
                    "end_date": subscribed.end,
                },
                {
                    "items": [{"price": new_flat, "quantity": 1}, {"price": new_usage}],
                    "duration": {"interval": "month", "interval_count": 1},
                    "proration_behavior": "none",
                },
            ],
        },
    )
    _use(account, subscribed, 10, subscribed.start + 60)
    _settle_usage(account, subscribed, 10)
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    switched = account.client.v1.subscriptions.retrieve(subscribed.subscription).to_dict()
    assert {item["price"]["id"] for item in switched["items"]["data"]} == {new_flat, new_usage}
    billed = account.invoices(subscribed.subscription, "subscription_cycle")[0]
    # The old price's usage and the new plan's fee.
    assert billed["total"] == 10 + 4900


def test_the_start_of_a_schedules_running_phase_cannot_be_changed(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    schedules = account.client.v1.subscription_schedules
    schedule = schedules.create({"from_subscription": subscribed.subscription})
    assert schedule.current_phase is not None
    assert schedule.current_phase.start_date == subscribed.start
    error = refused(
        lambda: schedules.update(
            schedule.id,
            {
                "phases": [
                    {
                        "items": [
                            {"price": subscribed.flat_price, "quantity": 1},
                            {"price": subscribed.usage_price},
                        ],
                        "start_date": subscribed.start - DAY_S,
                        "end_date": subscribed.end,
                    }
                ]
            },
        )
    )
    assert error.http_status == 400


def test_a_trial_goes_on_in_a_schedule_whose_running_phase_tells_its_end(
    account: StripeUnderTest,
) -> None:
    start = int(time.time()) // HOUR_S * HOUR_S - 20 * DAY_S
    clock, meter = account.make_clock(start), account.make_meter()
    flat, _ = account.make_prices(meter.id, [{"up_to": "inf", "unit_amount_decimal": Decimal(1)}])
    customer, trial_end = account.make_customer(clock), start + 10 * DAY_S
    subscriptions = account.client.v1.subscriptions
    name = subscriptions.create(
        {"customer": customer, "items": [{"price": flat}], "trial_end": trial_end}
    ).id
    schedules = account.client.v1.subscription_schedules
    schedule = schedules.create({"from_subscription": name})
    assert schedule.phases[0].trial_end == trial_end
    schedules.update(
        schedule.id,
        {
            "phases": [
                {
                    "items": [{"price": flat, "quantity": 1}],
                    "start_date": schedule.phases[0].start_date,
                    "end_date": trial_end,
                    "trial_end": trial_end,
                },
                {
                    "items": [{"price": flat, "quantity": 1}],
                    "duration": {"interval": "month", "interval_count": 1},
                },
            ]
        },
    )
    assert subscriptions.retrieve(name).status == "trialing"


@pytest.mark.parametrize("behavior", ["create_prorations", "none"])
def test_a_change_of_the_flat_price_is_prorated_only_if_asked(
    account: StripeUnderTest, behavior: Any
) -> None:
    subscribed = account.subscribe()
    dearer, _ = account.make_prices(
        subscribed.meter, [{"up_to": "inf", "unit_amount_decimal": Decimal(1)}], flat=5900
    )
    middle = (subscribed.start + subscribed.end) // 2 // HOUR_S * HOUR_S
    account.advance(subscribed.clock, middle)
    account.client.v1.subscription_items.update(
        subscribed.flat_item, {"price": dearer, "proration_behavior": behavior}
    )
    pending = account.client.v1.invoice_items.list(
        {"customer": subscribed.customer, "pending": True}
    )
    amounts = sorted(item.amount for item in pending.data)
    if behavior == "none":
        assert amounts == []
    else:
        assert len(amounts) == 2
        assert abs(sum(amounts) - 1500) <= 15


def test_an_advance_of_more_than_two_periods_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    subscribed = account.subscribe()
    far = subscribed.start + 100 * DAY_S
    error = refused(
        lambda: account.client.v1.test_helpers.test_clocks.advance(
            subscribed.clock, {"frozen_time": far}
        )
    )
    assert error.http_status == 400


def test_renewals_follow_each_other_on_the_same_day(account: StripeUnderTest) -> None:
    subscribed = account.subscribe()
    account.advance(subscribed.clock, subscribed.end + 2 * HOUR_S)
    second = account.client.v1.subscriptions.retrieve(subscribed.subscription).to_dict()
    end = second["items"]["data"][0]["current_period_end"]
    account.advance(subscribed.clock, end + 2 * HOUR_S)
    renewals = account.invoices(subscribed.subscription, "subscription_cycle")
    assert [row["status"] for row in renewals] == ["paid", "paid"]
    assert [row["period_end"] for row in renewals] == [end, subscribed.end]
