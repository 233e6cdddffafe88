"""What only the local Stripe can be made to do: rules that need its clock, its lag or its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from typing import Any, TypeVar

import httpx
import pytest
import stripe

from infra.local.stripe_server import DEFAULT_KEY, LocalStripe

HOUR_S, DAY_S = 3600, 86_400
EVENT_NAME = "credits"
T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local


@pytest.fixture
def local(server: LocalStripe) -> LocalStripe:
    """A server with nothing in it, at real time, with the settings it starts with."""
    server.reset()
    server.reset_clock()
    server.configure(
        summary_lag_s=0,
        lock_hold_s=0.001,
        async_errors=["meter_event_customer_not_found"],
        error_report_delay_s=0.05,
    )
    return server


@pytest.fixture
def client(local: LocalStripe) -> stripe.StripeClient:
    return local.client()


@pytest.fixture
def meter(client: stripe.StripeClient) -> str:
    return _make_meter(client, EVENT_NAME)


@pytest.fixture
def customer(client: stripe.StripeClient) -> str:
    return client.v1.customers.create({"name": "acme"}).id


def _make_meter(client: stripe.StripeClient, event_name: str, **more: Any) -> str:
    params: Any = {
        "display_name": event_name,
        "event_name": event_name,
        "default_aggregation": {"formula": "sum"},
        **more,
    }
    return client.v1.billing.meters.create(params).id


def _send(
    client: stripe.StripeClient,
    customer: str,
    value: object,
    *,
    event_name: str = EVENT_NAME,
    key: str | None = None,
    **more: Any,
) -> Any:
    params: Any = {
        "event_name": event_name,
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        **more,
    }
    return client.v1.billing.meter_events.create(params, {"idempotency_key": key} if key else {})


def _counted(client: stripe.StripeClient, meter: str, customer: str) -> int:
    day = int(time.time()) // DAY_S * DAY_S
    params: Any = {
        "customer": customer,
        "start_time": day - 40 * DAY_S,
        "end_time": day + 40 * DAY_S,
    }
    listed = client.v1.billing.meters.event_summaries.list(meter, params)
    return sum(int(row.aggregated_value) for row in listed.auto_paging_iter())


# 24 hours


def test_an_identifier_is_refused_for_24_hours_and_then_bills_again(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    at = int(time.time())
    _send(client, customer, 5, identifier="one", timestamp=at)
    local.advance_clock(DAY_S - 60)
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier one"):
        _send(client, customer, 5, identifier="one", timestamp=at)
    local.advance_clock(120)
    _send(client, customer, 5, identifier="one", timestamp=at)
    assert _counted(client, meter, customer) == 10


def test_an_idempotency_key_is_forgotten_after_24_hours(
    local: LocalStripe, client: stripe.StripeClient
) -> None:
    first = client.v1.customers.create({"name": "a"}, {"idempotency_key": "k"}).id
    assert client.v1.customers.create({"name": "a"}, {"idempotency_key": "k"}).id == first
    local.advance_clock(DAY_S + 1)
    assert client.v1.customers.create({"name": "a"}, {"idempotency_key": "k"}).id != first


def test_an_event_can_be_cancelled_for_24_hours_only(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _send(client, customer, 5, identifier="one")
    local.advance_clock(DAY_S + 1)
    with pytest.raises(stripe.InvalidRequestError, match="No such meter event"):
        client.v1.billing.meter_event_adjustments.create(
            {"event_name": EVENT_NAME, "type": "cancel", "cancel": {"identifier": "one"}}
        )
    assert _counted(client, meter, customer) == 5


def test_a_cancelled_identifier_stays_taken(
    client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _send(client, customer, 5, identifier="one")
    client.v1.billing.meter_event_adjustments.create(
        {"event_name": EVENT_NAME, "type": "cancel", "cancel": {"identifier": "one"}}
    )
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        _send(client, customer, 5, identifier="one")
    assert _counted(client, meter, customer) == 0


@pytest.mark.parametrize(
    ("age_s", "code"),
    [
        (35 * DAY_S + 60, "timestamp_too_far_in_past"),
        (-5 * 60 - 60, "timestamp_in_future"),
        (35 * DAY_S - 60, None),
        (-5 * 60 + 60, None),
    ],
)
def test_a_timestamp_may_be_35_days_old_and_5_minutes_ahead(
    client: stripe.StripeClient, meter: str, customer: str, age_s: int, code: str | None
) -> None:
    at = int(time.time()) - age_s
    if code is None:
        _send(client, customer, 5, timestamp=at)
        assert _counted(client, meter, customer) == 5
        return
    with pytest.raises(stripe.InvalidRequestError) as caught:
        _send(client, customer, 5, timestamp=at)
    assert caught.value.code == code


def test_a_clock_customers_events_are_judged_by_its_clock(
    client: stripe.StripeClient, meter: str
) -> None:
    at = int(time.time()) - 100 * DAY_S
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": at})
    customer = client.v1.customers.create({"test_clock": clock.id}).id
    _send(client, customer, 5, timestamp=at - 34 * DAY_S)
    with pytest.raises(stripe.InvalidRequestError, match="in future"):
        _send(client, customer, 5, timestamp=at + HOUR_S)


# Parallel calls


def _answer_all_but_the_first(local: LocalStripe, send: Callable[[int], T], count: int) -> list[T]:
    """The answers as they come; the call that holds the lock goes on when all others are told."""
    with ThreadPoolExecutor(count) as pool:
        answers = []
        for answered in as_completed([pool.submit(send, number) for number in range(count)]):
            answers.append(answered.result())
            if len(answers) == count - 1:
                local.configure(lock_hold_s=0)
    return answers


def test_parallel_events_of_one_customer_and_meter_are_answered_409(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    local.configure(lock_hold_s=60)

    def send(number: int) -> tuple[int, str]:
        own = local.client(timeout_s=60)
        try:
            _send(own, customer, 1, identifier=f"p{number}", key=f"k{number}")
        except stripe.APIError as error:
            body: Any = error.json_body
            return error.http_status or 0, body["error"]["code"]
        return 200, ""

    assert _answer_all_but_the_first(local, send, 4) == [(409, "lock_timeout")] * 3 + [(200, "")]
    assert _counted(client, meter, customer) == 1
    for number in range(4):
        # A 409 kept nothing under its key, so the same call goes through now or was done before.
        _send(client, customer, 1, identifier=f"p{number}", key=f"k{number}")
    assert _counted(client, meter, customer) == 4


def test_parallel_events_of_different_customers_or_meters_are_not(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _make_meter(client, "tokens")
    other = client.v1.customers.create({"name": "other"}).id
    local.configure(lock_hold_s=60)
    targets = [(customer, EVENT_NAME), (customer, "tokens"), (other, EVENT_NAME)]

    def send(target: tuple[str, str]) -> None:
        own = local.client(timeout_s=60)
        _send(own, target[0], 1, event_name=target[1])

    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(send, target) for target in targets]
        while local.state()["locked"] < 3:
            assert not [each for each in sent if each.done()]
            time.sleep(0.01)
        local.configure(lock_hold_s=0)
        for each in sent:
            each.result()
    assert sum(local.totals().values()) == 3


def test_two_calls_under_one_idempotency_key_at_once_are_done_once(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    local.configure(lock_hold_s=60)

    def send(_: int) -> int:
        own = local.client(timeout_s=60)
        try:
            _send(own, customer, 1, identifier="one", key="k")
        except stripe.StripeError as error:
            return error.http_status or 0
        return 200

    assert _answer_all_but_the_first(local, send, 2) == [409, 200]
    assert _counted(client, meter, customer) == 1


# What Stripe says later


def test_an_unknown_customer_is_answered_200_and_reported_by_a_thin_event(
    local: LocalStripe, client: stripe.StripeClient, meter: str
) -> None:
    _send(client, "cus_nobody", 5, identifier="lost", key="the-key")
    local.settle()
    events = list(client.v2.core.events.list({"object_id": meter}).auto_paging_iter())
    assert [event.type for event in events] == ["v1.billing.meter.error_report_triggered"]
    fetched = client.v2.core.events.retrieve(events[0].id).to_dict()
    reason = fetched["data"]["reason"]
    assert reason["error_count"] == 1
    assert reason["error_types"][0]["code"] == "meter_event_customer_not_found"
    sample = reason["error_types"][0]["sample_errors"][0]
    assert sample["request"] == {"identifier": "lost", "idempotency_key": "the-key"}
    assert [row["outcome"] for row in local.meter_events()] == ["reported"]


def test_a_report_counts_all_errors_but_shows_samples(
    local: LocalStripe, client: stripe.StripeClient, meter: str
) -> None:
    local.configure(error_report_delay_s=60)
    for number in range(9):
        _send(client, "cus_nobody", 5, identifier=f"lost{number}")
    local.settle()
    events = list(client.v2.core.events.list({"object_id": meter}).auto_paging_iter())
    found = events[0].to_dict()["data"]["reason"]["error_types"][0]
    assert found["error_count"] == 9
    assert len(found["sample_errors"]) == 5


@pytest.mark.parametrize(
    "code", ["archived_meter", "timestamp_too_far_in_past", "meter_event_invalid_value", "no_meter"]
)
def test_any_refusal_can_be_made_to_come_later(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str, code: str
) -> None:
    def provoke() -> None:
        if code == "archived_meter":
            client.v1.billing.meters.deactivate(meter)
            _send(client, customer, 5)
        elif code == "timestamp_too_far_in_past":
            _send(client, customer, 5, timestamp=1)
        elif code == "meter_event_invalid_value":
            _send(client, customer, "1.5")
        else:
            _send(client, customer, 5, event_name="nobody_counts_this")

    with pytest.raises(stripe.InvalidRequestError) as caught:
        provoke()
    assert caught.value.code == code
    if code == "archived_meter":
        client.v1.billing.meters.reactivate(meter)
    local.configure(async_errors=[code])
    provoke()
    local.settle()
    found = [event.to_dict() for event in client.v2.core.events.list({}).auto_paging_iter()]
    assert [row["data"]["reason"]["error_types"][0]["code"] for row in found] == [code]
    assert found[0]["type"] == (
        "v1.billing.meter.no_meter_found"
        if code == "no_meter"
        else "v1.billing.meter.error_report_triggered"
    )
    assert local.totals() == {}


def test_summaries_and_previews_lag_behind_but_finalisation_does_not(
    local: LocalStripe, client: stripe.StripeClient, meter: str
) -> None:
    start = int(time.time()) // HOUR_S * HOUR_S
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": start})
    customer = client.v1.customers.create({"test_clock": clock.id}).id
    price = client.v1.prices.create(
        {
            "product_data": {"name": "Usage"},
            "currency": "usd",
            "unit_amount": 3,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
        }
    )
    subscription = client.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": price.id}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    local.configure(summary_lag_s=3600)
    _send(client, customer, 10, timestamp=start)
    assert _counted(client, meter, customer) == 0
    assert client.v1.invoices.create_preview({"subscription": subscription.id}).total == 0
    end = subscription.to_dict()["items"]["data"][0]["current_period_end"]
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": end + 2 * HOUR_S})
    assert client.v1.invoices.list({"subscription": subscription.id}).data[0].total == 30
    other = client.v1.customers.create({}).id
    _send(client, other, 7)
    assert _counted(client, meter, other) == 0
    local.advance_clock(3601)
    assert _counted(client, meter, other) == 7


# Windows


def test_on_a_daily_meter_only_the_last_event_of_the_utc_day_counts(
    client: stripe.StripeClient, customer: str
) -> None:
    meter = _make_meter(client, "daily", event_time_window="day")
    day = int(time.time()) // DAY_S * DAY_S - DAY_S
    for at, value in ((day, 1), (day + DAY_S - 1, 5), (day + 3 * HOUR_S, 3), (day - 1, 100)):
        _send(client, customer, value, event_name="daily", timestamp=at)
    assert _counted(client, meter, customer) == 105


def test_single_events_on_an_hourly_meter_lose_all_but_the_last(
    client: stripe.StripeClient, customer: str
) -> None:
    meter = _make_meter(client, "hourly", event_time_window="hour")
    hour = int(time.time()) // HOUR_S * HOUR_S - HOUR_S
    for second in range(10):
        _send(client, customer, 1, event_name="hourly", timestamp=hour + second)
    assert _counted(client, meter, customer) == 1


@pytest.mark.parametrize(("formula", "expected"), [("sum", 12), ("count", 3), ("last", 2)])
def test_a_meter_sums_counts_or_takes_the_last(
    client: stripe.StripeClient, customer: str, formula: str, expected: int
) -> None:
    meter = _make_meter(client, formula, default_aggregation={"formula": formula})
    at = int(time.time()) - 100
    for second, value in enumerate((4, 6, 2)):
        _send(client, customer, value, event_name=formula, timestamp=at + second)
    assert _counted(client, meter, customer) == expected


# The request check and the control API


def _post(local: LocalStripe, path: str, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{local.url}{path}",
        content=body,
        headers={
            "Authorization": f"Bearer {DEFAULT_KEY}",
            "Content-Type": "application/x-www-form-urlencoded",
            **headers,
        },
    )


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"event_name=credits", "parameter_missing", "payload"),
        (b"event_name=credits&payload=5", None, "payload"),
        (b"event_name=credits&payload[value]=5&timestamp=now", "parameter_invalid_integer", "time"),
        (b"event_name=credits&payload[value]=5&value=5", "parameter_unknown", "value"),
        (b"event_name[a]=credits&payload[value]=5", None, "event_name"),
        (b"event_name=credits&payload[value][x]=5", None, "payload[value]"),
        (b"\xff\xfe", None, None),
        (b"[x]=1", None, "[x]"),
        (b"a=1&a[b]=2", None, "a"),
    ],
)
def test_a_request_that_stripe_params_does_not_describe_is_refused_and_noted(
    local: LocalStripe, meter: str, body: bytes, code: str | None, param: str | None
) -> None:
    answer = _post(local, "/v1/billing/meter_events", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error.get("code") == code
    if param is not None:
        assert error["param"].startswith(param)
    assert local.totals() == {}


def test_a_clean_run_leaves_no_violations(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _send(client, customer, 5)
    assert local.violations() == []
    _post(local, "/v1/customers", b"colour=blue")
    assert [row["param"] for row in local.violations()] == ["colour"]


def test_unknown_parameters_pass_when_requests_are_not_checked_but_are_noted() -> None:
    with LocalStripe(check_requests=False) as lenient:
        assert _post(lenient, "/v1/customers", b"colour=blue").status_code == 200
        assert [row["code"] for row in lenient.violations()] == ["parameter_unknown"]


def test_every_call_to_meter_events_is_kept_with_its_outcome(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _send(client, customer, 5, identifier="a")
    for bad in ({"identifier": "a"}, {"identifier": "b", "timestamp": 1}):
        with pytest.raises(stripe.InvalidRequestError):
            _send(client, customer, 5, **bad)
    outcomes = [(row["identifier"], row["outcome"], row["code"]) for row in local.meter_events()]
    assert outcomes == [
        ("a", "accepted", None),
        ("a", "duplicate", None),
        ("b", "refused", "timestamp_too_far_in_past"),
    ]
    assert len(local.meter_events(outcome="duplicate", customer=customer)) == 1
    assert local.totals() == {(EVENT_NAME, customer): 5}


def test_a_reset_forgets_everything_but_the_clock(
    local: LocalStripe, client: stripe.StripeClient, meter: str, customer: str
) -> None:
    _send(client, customer, 5)
    before = local.advance_clock(1000)
    local.reset()
    assert local.meter_events() == []
    assert client.v1.billing.meters.list({}).data == []
    assert local.state()["now"] >= before


def test_no_key_and_a_wrong_key_are_401(local: LocalStripe) -> None:
    assert httpx.get(f"{local.url}/v1/customers").status_code == 401
    wrong = httpx.get(f"{local.url}/v1/customers", auth=("sk_test_other", ""))
    assert wrong.status_code == 401
    assert DEFAULT_KEY not in wrong.text
    assert httpx.get(f"{local.url}/v1/customers", auth=(DEFAULT_KEY, "")).status_code == 200


# Time without test clocks


def test_moving_the_servers_clock_renews_subscriptions_that_have_no_test_clock(
    local: LocalStripe, client: stripe.StripeClient, meter: str
) -> None:
    customer = client.v1.customers.create({}).id
    price = client.v1.prices.create(
        {
            "product_data": {"name": "Flat"},
            "currency": "usd",
            "unit_amount": 100,
            "recurring": {"interval": "week"},
        }
    )
    subscription = client.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": price.id}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    local.advance_clock(3 * 7 * DAY_S + 2 * HOUR_S)
    rows = client.v1.invoices.list({"subscription": subscription.id}).data
    assert [row.status for row in rows] == ["open"] * 4
    starts = [row.to_dict()["lines"]["data"][0]["period"]["start"] for row in rows]
    assert [later - earlier for later, earlier in pairwise(starts)] == [7 * DAY_S] * 3


def test_a_subscription_that_was_refused_leaves_nothing_behind(
    local: LocalStripe, client: stripe.StripeClient
) -> None:
    customer = client.v1.customers.create({}).id
    price = client.v1.prices.create(
        {
            "product_data": {"name": "Flat"},
            "currency": "usd",
            "unit_amount": 100,
            "recurring": {"interval": "month"},
        }
    )
    client.v1.invoice_items.create({"customer": customer, "amount": 50, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source"):
        client.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
    assert client.v1.subscriptions.list({"customer": customer, "status": "all"}).data == []
    assert client.v1.invoices.list({"customer": customer}).data == []
    (item,) = client.v1.invoice_items.list({"customer": customer, "pending": True}).data
    assert item.amount == 50
    objects = local.state()["objects"]
    assert (objects["subscription"], objects["subscription_item"]) == (0, 0)
