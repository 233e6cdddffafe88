"""The local Stripe's pure parts: forms, request check, periods, tiers, usage, keys."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.stripe_server.app import StripeApp
from infra.local.stripe_server.billing import price_graduated, price_volume, round_half_up
from infra.local.stripe_server.errors import StripeError
from infra.local.stripe_server.forms import decode_form
from infra.local.stripe_server.idempotency import IdempotencyKeys
from infra.local.stripe_server.periods import next_boundary, shift
from infra.local.stripe_server.request_check import Problem, shape_of
from infra.local.stripe_server.routes import all_routes
from infra.local.stripe_server.usage import MeterEvent, UsageBook


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("a=1&b=", {"a": "1", "b": ""}),
        ("a[b]=1&a[c]=2", {"a": {"b": "1", "c": "2"}}),
        ("a[]=1&a[]=2", {"a": ["1", "2"]}),
        (
            "items[0][price]=p&items[1][price]=q",
            {"items": {"0": {"price": "p"}, "1": {"price": "q"}}},
        ),
        ("name=a%26b+c%C3%A9", {"name": "a&b cé"}),
        ("a=1&a=2", {"a": "2"}),
    ],
)
def test_forms_are_decoded_as_stripe_writes_them(text: str, values: Any) -> None:
    assert decode_form(text) == values


@pytest.mark.parametrize("text", ["a=1&a[b]=2", "a[b]=1&a=2", "a[b=1", "[a]=1", "a[]=1&a[x]=2"])
def test_a_form_that_contradicts_itself_is_refused(text: str) -> None:
    with pytest.raises(StripeError):
        decode_form(text)


def _problems(name: str, raw: Any) -> list[tuple[str, str | None]]:
    problems: list[Problem] = []
    shape_of(name).read(raw, "", problems)
    return [(problem.param, problem.code) for problem in problems]


def test_the_request_check_reads_typed_values() -> None:
    problems: list[Problem] = []
    raw = decode_form(
        "currency=usd&unit_amount_decimal=0.5&active=true&metadata[a]=b"
        "&recurring[interval]=month&recurring[interval_count]=2"
    )
    typed = shape_of("PriceCreateParams").read(raw, "", problems)
    assert problems == []
    assert typed["unit_amount_decimal"] == Fraction(1, 2)
    assert typed["active"] is True
    assert typed["recurring"] == {"interval": "month", "interval_count": 2}


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("ProductCreateParams", "", [("name", "parameter_missing")]),
        ("ProductCreateParams", "name=a&colour=b", [("colour", "parameter_unknown")]),
        (
            "PriceCreateParams",
            "currency=usd&recurring[interval]=month&recurring[colour]=b",
            [("recurring[colour]", "parameter_unknown")],
        ),
        (
            "PriceCreateParams",
            "currency=usd&recurring[usage_type]=metered",
            [("recurring[interval]", "parameter_missing")],
        ),
        (
            "PriceCreateParams",
            "currency=usd&recurring[interval]=fortnight",
            [("recurring[interval]", None)],
        ),
        ("PriceCreateParams", "currency=usd&active=yes", [("active", None)]),
        (
            "PriceCreateParams",
            "currency=usd&unit_amount=1.5",
            [("unit_amount", "parameter_invalid_integer")],
        ),
        (
            "PriceCreateParams",
            "currency=usd&unit_amount_decimal=NaN",
            [("unit_amount_decimal", None)],
        ),
        (
            "PriceCreateParams",
            "currency=usd&tiers[0][up_to]=most",
            [("tiers[0][up_to]", "parameter_invalid_integer")],
        ),
        ("PriceCreateParams", "currency=usd&tiers=5", [("tiers", None)]),
        ("CustomerCreateParams", "metadata[a][b]=1", [("metadata[a]", None)]),
        ("CustomerCreateParams", "metadata=", []),
        ("CustomerCreateParams", "api_key=sk_test", [("api_key", "parameter_unknown")]),
        ("SubscriptionCreateParams", "customer=c&items[0][price]=p&trial_end=now", []),
        (
            "WebhookEndpointCreateParams",
            "url=u&enabled_events[0]=invoice.imagined",
            [("enabled_events[0]", None)],
        ),
    ],
)
def test_the_request_check_names_what_is_wrong(
    name: str, form: str, expected: list[tuple[str, str | None]]
) -> None:
    assert _problems(name, decode_form(form)) == expected


def test_every_endpoint_has_a_request_type_in_the_sdk() -> None:
    StripeApp(key="k", check_requests=True, cut=lambda _client: None)
    assert len(all_routes()) > 80
    for entry in all_routes():
        assert shape_of(entry.params).name == entry.params.rpartition(".")[2]


def _utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("anchor", "after", "expected"),
    [
        ("2027-01-31T10:30:05", "2027-01-31T10:30:05", "2027-02-28T10:30:05"),
        ("2027-01-31T10:30:05", "2027-02-28T10:30:05", "2027-03-31T10:30:05"),
        ("2027-12-30T00:00:00", "2028-02-10T00:00:00", "2028-02-29T00:00:00"),
        ("2028-02-29T00:00:00", "2028-02-29T00:00:00", "2028-03-29T00:00:00"),
        ("2027-05-15T12:00:00", "2027-04-01T00:00:00", "2027-04-15T12:00:00"),
        ("2027-01-01T00:00:00", "2031-06-15T00:00:00", "2031-07-01T00:00:00"),
    ],
)
def test_a_monthly_cycle_keeps_its_day_of_the_month(anchor: str, after: str, expected: str) -> None:
    assert next_boundary(_utc(anchor), "month", 1, _utc(after)) == _utc(expected)


@given(
    st.integers(1_500_000_000, 2_500_000_000),
    st.sampled_from(["day", "week", "month", "year"]),
    st.integers(1, 3),
    st.integers(-100_000_000, 100_000_000),
)
def test_a_boundary_is_the_first_after_and_on_the_cycle(
    anchor: int, interval: str, count: int, distance: int
) -> None:
    after = anchor + distance
    boundary = next_boundary(anchor, interval, count, after)
    assert boundary > after
    typical_s = {"day": 86_400, "week": 604_800, "month": 2_629_746, "year": 31_556_952}
    near = round((boundary - anchor) / (typical_s[interval] * count))
    cycle = [shift(anchor, interval, count * (near + step)) for step in range(-2, 3)]
    assert boundary in cycle
    assert cycle[cycle.index(boundary) - 1] <= after


def _tier(up_to: int | None, rate: str | None, flat: str | None = None) -> dict[str, Any]:
    return {"up_to": up_to, "unit_amount_decimal": rate, "flat_amount_decimal": flat}


@pytest.mark.parametrize(
    ("exact", "rounded"), [("0.5", 1), ("-0.5", -1), ("1.49", 1), ("-1.51", -2), ("2.5", 3)]
)
def test_amounts_are_rounded_half_up(exact: str, rounded: int) -> None:
    assert round_half_up(Fraction(exact)) == rounded


def test_graduated_and_volume_tiers() -> None:
    tiers = [_tier(10, "1", "300"), _tier(None, "2.5", "700")]
    assert [line.amount for line in price_graduated(tiers, 13)] == [10, 300, 8, 700]
    assert [line.amount for line in price_graduated(tiers, 0)] == [0, 300]
    assert [line.amount for line in price_volume(tiers, 13)] == [33, 700]
    assert [line.amount for line in price_volume(tiers, 10)] == [10, 300]


def _event(sequence: int, timestamp: int, value: int) -> MeterEvent:
    return MeterEvent(
        sequence, f"e{sequence}", "m", "c", value, timestamp, float(sequence), "accepted"
    )


@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(-5, 50)), max_size=40),
    st.integers(0, 40_000),
    st.integers(0, 40_000),
    st.sampled_from([None, "hour"]),
)
def test_totals_equal_a_plain_count_of_the_events(
    events: list[tuple[int, int]], start: int, end: int, window: str | None
) -> None:
    book = UsageBook()
    kept = [_event(number, *event) for number, event in enumerate(events)]
    for event in kept:
        book.record(event)
    book.apply_all()
    counted = kept
    if window:
        last: dict[int, MeterEvent] = {}
        for event in kept:
            known = last.get(event.timestamp // 3600)
            if known is None or event.timestamp >= known.timestamp:
                last[event.timestamp // 3600] = event
        counted = list(last.values())
    expected = sum(event.value or 0 for event in counted if start <= event.timestamp < end)
    assert book.total("m", "c", "sum", window, start, end) == expected


def test_an_event_counts_only_once_it_is_applied_and_until_it_is_cancelled() -> None:
    book = UsageBook()
    early, late = _event(0, 100, 5), _event(1, 100, 7)
    book.record(early)
    book.record(late)
    book.apply(0.5)
    assert book.total("m", "c", "sum", None, 0, 200) == 5
    book.cancel(late)
    book.apply_all()
    assert book.total("m", "c", "sum", None, 0, 200) == 5
    book.cancel(early)
    assert book.total("m", "c", "sum", None, 0, 200) == 0


def test_a_key_is_claimed_kept_replayed_and_forgotten() -> None:
    keys = IdempotencyKeys()
    assert keys.begin("k", "POST", "/v1/a", {"x": "1"}, 0) is None
    with pytest.raises(StripeError) as caught:
        keys.begin("k", "POST", "/v1/a", {"x": "1"}, 1)
    assert caught.value.status == 409
    keys.keep("k", 200, b"{}", "req_1")
    replay = keys.begin("k", "POST", "/v1/a", {"x": "1"}, 2)
    assert replay is not None
    assert (replay.status, replay.body, replay.request_id) == (200, b"{}", "req_1")
    for path, params in (("/v1/a", {"x": "2"}), ("/v1/b", {"x": "1"})):
        with pytest.raises(StripeError) as caught:
            keys.begin("k", "POST", path, params, 3)
        assert caught.value.kind == "idempotency_error"
    assert keys.begin("k", "POST", "/v1/b", {}, 24 * 3600) is None
    keys.release("k")
    assert keys.begin("k", "POST", "/v1/c", {}, 24 * 3600 + 1) is None
