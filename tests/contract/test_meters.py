"""Meters and their events: what is refused, what counts, what is counted once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import stripe

from tests.contract.conftest import DAY_S, HOUR_S, StripeUnderTest

Refused = Callable[[Callable[[], object]], stripe.StripeError]


def _today() -> tuple[int, int]:
    """From yesterday's first second to tomorrow's last, as whole days."""
    day = int(time.time()) // DAY_S * DAY_S
    return day - DAY_S, day + 2 * DAY_S


def _finished_hour() -> int:
    """The first second of the hour before this one."""
    return int(time.time()) // HOUR_S * HOUR_S - HOUR_S


def _status(work: Callable[[], object]) -> int:
    """Stripe checks some things at once and some later: 200, or the refusal's status."""
    try:
        work()
    except stripe.InvalidRequestError as error:
        return error.http_status or 0
    return 200


def test_a_second_active_meter_of_an_event_name_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    meter = account.make_meter()
    error = refused(
        lambda: account.client.v1.billing.meters.create(
            {
                "display_name": "again",
                "event_name": meter.event_name,
                "default_aggregation": {"formula": "sum"},
            }
        )
    )
    assert error.http_status == 400


def test_only_a_meters_display_name_changes(account: StripeUnderTest) -> None:
    meter = account.make_meter("hour")
    changed = account.client.v1.billing.meters.update(meter.id, {"display_name": "Renamed"})
    assert changed.display_name == "Renamed"
    assert (changed.event_name, changed.event_time_window) == (meter.event_name, "hour")
    assert changed.customer_mapping.event_payload_key == "stripe_customer_id"
    assert changed.value_settings.event_payload_key == "value"


def test_a_meter_is_deactivated_and_reactivated(account: StripeUnderTest) -> None:
    meters, meter = account.client.v1.billing.meters, account.make_meter()
    off = meters.deactivate(meter.id)
    assert off.status == "inactive"
    assert off.status_transitions.deactivated_at is not None
    on = meters.reactivate(meter.id)
    assert (on.status, on.status_transitions.deactivated_at) == ("active", None)


def test_events_add_up_in_the_summaries(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    start, end = _today()
    for value in (5, 7, 30):
        account.send(meter.event_name, customer, value)
    account.wait_counted(42, meter.id, customer, start, end)


def test_an_event_answers_what_was_sent(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    name, at = account.unique("event"), int(time.time()) - 60
    event = account.send(meter.event_name, customer, 5, identifier=name, timestamp=at)
    assert (event.identifier, event.timestamp, event.event_name) == (name, at, meter.event_name)
    assert event.to_dict()["payload"] == {"stripe_customer_id": customer, "value": "5"}


def test_a_repeated_identifier_is_refused_with_no_code_and_counts_once(
    account: StripeUnderTest, refused: Refused
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    name = account.unique("event")
    account.send(meter.event_name, customer, 5, identifier=name)
    error = refused(lambda: account.send(meter.event_name, customer, 5, identifier=name))
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code) == (400, None)
    assert f"An event already exists with identifier {name}" in str(error)
    account.send(meter.event_name, customer, 100)
    account.wait_counted(105, meter.id, customer, *_today())


def test_a_repeated_identifier_is_refused_even_with_other_content(
    account: StripeUnderTest, refused: Refused
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    name = account.unique("event")
    account.send(meter.event_name, customer, 5, identifier=name)
    error = refused(lambda: account.send(meter.event_name, customer, 6, identifier=name))
    assert "already exists" in str(error)


def test_a_repeat_under_the_same_idempotency_key_is_the_first_answer(
    account: StripeUnderTest,
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    key, name = account.unique("key"), account.unique("event")
    for _ in range(2):
        event = account.client.v1.billing.meter_events.create(
            {
                "event_name": meter.event_name,
                "payload": {"stripe_customer_id": customer, "value": "5"},
                "identifier": name,
            },
            {"idempotency_key": key},
        )
        assert event.identifier == name
    account.wait_counted(5, meter.id, customer, *_today())


@pytest.mark.parametrize("age_s", [35 * DAY_S + HOUR_S, -HOUR_S])
def test_a_timestamp_over_35_days_old_or_over_5_minutes_ahead_is_refused(
    account: StripeUnderTest, refused: Refused, age_s: int
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    at = int(time.time()) - age_s
    error = refused(lambda: account.send(meter.event_name, customer, 5, timestamp=at))
    assert isinstance(error, stripe.InvalidRequestError)
    assert error.http_status == 400


@pytest.mark.parametrize("age_s", [34 * DAY_S, -60])
def test_a_timestamp_within_35_days_and_5_minutes_is_taken(
    account: StripeUnderTest, age_s: int
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    at = int(time.time()) - age_s
    account.send(meter.event_name, customer, 5, timestamp=at)
    day = at // DAY_S * DAY_S
    account.wait_counted(5, meter.id, customer, day, day + DAY_S)


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        ({"value": "5"}, "no customer"),
        ({"stripe_customer_id": "CUSTOMER"}, "no value"),
        ({"stripe_customer_id": "CUSTOMER", "value": "many"}, "not a number"),
        ({"stripe_customer_id": "CUSTOMER", "value": "1234567890123456"}, "16 digits"),
        ({"stripe_customer_id": "cus_nobody", "value": "5"}, "unknown customer"),
    ],
)
def test_an_event_that_cannot_count_is_refused_or_never_counted(
    account: StripeUnderTest, payload: dict[str, str], what: str
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    told = {key: customer if value == "CUSTOMER" else value for key, value in payload.items()}
    params: Any = {"event_name": meter.event_name, "payload": told}
    status = _status(lambda: account.client.v1.billing.meter_events.create(params))
    assert status in (200, 400), what
    account.send(meter.event_name, customer, 7)
    account.wait_counted(7, meter.id, customer, *_today())


def test_fifteen_digits_and_negative_values_count(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    account.send(meter.event_name, customer, 999_999_999_999_999)
    account.send(meter.event_name, customer, -1)
    account.wait_counted(999_999_999_999_998, meter.id, customer, *_today())


def test_an_event_of_an_archived_meter_does_not_count(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    account.send(meter.event_name, customer, 5)
    account.wait_counted(5, meter.id, customer, *_today())
    account.client.v1.billing.meters.deactivate(meter.id)
    assert _status(lambda: account.send(meter.event_name, customer, 100)) in (200, 400)
    account.client.v1.billing.meters.reactivate(meter.id)
    account.send(meter.event_name, customer, 1)
    account.wait_counted(6, meter.id, customer, *_today())


def test_on_an_hourly_meter_only_the_most_recent_event_of_an_hour_counts(
    account: StripeUnderTest,
) -> None:
    meter, customer = account.make_meter("hour"), account.make_customer(card=False)
    hour = _finished_hour()
    account.send(meter.event_name, customer, 10, timestamp=hour + 100)
    account.send(meter.event_name, customer, 25, timestamp=hour + 200)
    account.send(meter.event_name, customer, 7, timestamp=hour - HOUR_S + 5)
    account.wait_counted(32, meter.id, customer, hour - HOUR_S, hour + HOUR_S)


def test_an_earlier_event_of_the_hour_does_not_overwrite_a_later_one(
    account: StripeUnderTest,
) -> None:
    meter, customer = account.make_meter("hour"), account.make_customer(card=False)
    hour = _finished_hour()
    account.send(meter.event_name, customer, 25, timestamp=hour + 200)
    account.send(meter.event_name, customer, 10, timestamp=hour + 100)
    account.wait_counted(25, meter.id, customer, hour, hour + HOUR_S)


def test_a_total_sent_again_for_the_same_second_takes_the_place_of_the_first(
    account: StripeUnderTest,
) -> None:
    meter, customer = account.make_meter("hour"), account.make_customer(card=False)
    hour = _finished_hour()
    for total in (10, 25):
        account.send(meter.event_name, customer, total, timestamp=hour + 3599)
    account.wait_counted(25, meter.id, customer, hour, hour + HOUR_S)


def test_a_cancelled_event_no_longer_counts(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    name = account.unique("event")
    account.send(meter.event_name, customer, 5, identifier=name)
    account.send(meter.event_name, customer, 7)
    account.wait_counted(12, meter.id, customer, *_today())
    adjustment = account.client.v1.billing.meter_event_adjustments.create(
        {"event_name": meter.event_name, "type": "cancel", "cancel": {"identifier": name}}
    )
    assert adjustment.status in ("pending", "complete")
    account.wait_counted(7, meter.id, customer, *_today())


@pytest.mark.parametrize(
    ("window", "grain_s"), [(None, 60), ("hour", HOUR_S), ("day", DAY_S)], ids=str
)
def test_summaries_take_only_times_that_are_aligned(
    account: StripeUnderTest, refused: Refused, window: str | None, grain_s: int
) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    more = {"value_grouping_window": window} if window else {}
    start, end = _today()
    account.counted(meter.id, customer, start, end, **more)
    off = grain_s // 2
    error = refused(lambda: account.counted(meter.id, customer, start + off, end, **more))
    assert error.http_status == 400


def test_summaries_by_hour_hold_each_hours_part_and_page(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    hour = _finished_hour()
    for back in range(3):
        account.send(meter.event_name, customer, 10 + back, timestamp=hour - back * HOUR_S + 1)
    start, end = hour - 2 * HOUR_S, hour + HOUR_S
    account.wait_counted(33, meter.id, customer, start, end)
    listed = account.client.v1.billing.meters.event_summaries.list(
        meter.id,
        {
            "customer": customer,
            "start_time": start,
            "end_time": end,
            "value_grouping_window": "hour",
            "limit": 2,
        },
    )
    assert len(listed.data) == 2
    assert listed.has_more
    parts = {row.start_time: row.aggregated_value for row in listed.auto_paging_iter()}
    assert parts == {hour: 10, hour - HOUR_S: 11, hour - 2 * HOUR_S: 12}


def test_a_summary_ends_before_its_end_time(account: StripeUnderTest) -> None:
    meter, customer = account.make_meter(), account.make_customer(card=False)
    hour = _finished_hour()
    account.send(meter.event_name, customer, 5, timestamp=hour)
    account.wait_counted(5, meter.id, customer, hour, hour + 60)
    assert account.counted(meter.id, customer, hour - 60, hour) == 0
