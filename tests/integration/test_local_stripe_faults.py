"""Every fault that can be switched on, seen through the official SDK."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from infra.local.stripe_server import LocalStripe

EVENTS = "/v1/billing/meter_events"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local


@pytest.fixture
def local(server: LocalStripe) -> LocalStripe:
    server.reset()
    return server


@pytest.fixture
def client(local: LocalStripe) -> stripe.StripeClient:
    client = local.client(timeout_s=60)
    client.v1.billing.meters.create(
        {
            "display_name": "Credits",
            "event_name": "credits",
            "default_aggregation": {"formula": "sum"},
        }
    )
    return client


@pytest.fixture
def customer(client: stripe.StripeClient) -> str:
    return client.v1.customers.create({}).id


def _send(client: stripe.StripeClient, customer: str, key: str | None = None) -> Any:
    params: Any = {
        "event_name": "credits",
        "payload": {"stripe_customer_id": customer, "value": "5"},
        "identifier": "one",
    }
    return client.v1.billing.meter_events.create(params, {"idempotency_key": key} if key else {})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, stripe.RateLimitError),
        (409, stripe.APIError),
        (500, stripe.APIError),
        (503, stripe.APIError),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_comes_before_or_after_the_effect(
    local: LocalStripe,
    client: stripe.StripeClient,
    customer: str,
    status: int,
    expected: type[stripe.StripeError],
    when: str,
) -> None:
    local.add_fault("error", status=status, when=when, path=EVENTS, count=1)
    with pytest.raises(stripe.StripeError) as caught:
        _send(client, customer)
    assert caught.value.http_status == status
    assert isinstance(caught.value, expected)
    assert sum(local.totals().values()) == (5 if when == "after" else 0)
    if when == "after":
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            _send(client, customer)
    else:
        _send(client, customer)
    assert sum(local.totals().values()) == 5


@pytest.mark.parametrize("kind", ["drop", "timeout"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_is_lost_before_or_after_the_effect(
    local: LocalStripe, client: stripe.StripeClient, customer: str, kind: str, when: str
) -> None:
    local.add_fault(kind, when=when, path=EVENTS, count=1)
    with pytest.raises(stripe.APIConnectionError):
        _send(local.client(timeout_s=1), customer, key="k")
    assert sum(local.totals().values()) == (5 if when == "after" else 0)
    again = _send(client, customer, key="k")
    assert again.identifier == "one"
    assert sum(local.totals().values()) == 5
    lost = [row["answer_lost"] for row in local.journal() if row["path"] == EVENTS]
    assert lost == ([True, False] if when == "after" else [False])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_saved_500_is_repeated_under_its_idempotency_key(
    local: LocalStripe, client: stripe.StripeClient, customer: str, when: str
) -> None:
    local.add_fault("error", status=500, when=when, saved=True, path=EVENTS, count=1)
    for _ in range(3):
        with pytest.raises(stripe.APIError) as caught:
            _send(client, customer, key="k")
        assert caught.value.http_status == 500
    assert caught.value.headers is not None
    assert caught.value.headers["idempotent-replayed"] == "true"
    if when == "before":
        _send(client, customer, key="k2")
    else:
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            _send(client, customer, key="k2")
    assert sum(local.totals().values()) == 5


def test_an_unsaved_500_leaves_the_key_free_or_the_result_true(
    local: LocalStripe, client: stripe.StripeClient, customer: str
) -> None:
    local.add_fault("error", status=500, when="after", path=EVENTS, count=1)
    with pytest.raises(stripe.APIError):
        _send(client, customer, key="k")
    assert _send(client, customer, key="k").identifier == "one"
    assert sum(local.totals().values()) == 5


def test_latency_delays_the_answer(
    local: LocalStripe, client: stripe.StripeClient, customer: str
) -> None:
    local.add_fault("latency", latency_ms=300, path=EVENTS, count=1)
    began_s = time.monotonic()
    _send(client, customer)
    assert time.monotonic() - began_s >= 0.3


def test_a_fault_strikes_by_count_method_and_path(
    local: LocalStripe, client: stripe.StripeClient, customer: str
) -> None:
    local.add_fault("error", status=500, path="/v1/customers/.*", method="GET", count=2)
    client.v1.customers.create({})
    _send(client, customer)
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            client.v1.customers.retrieve(customer)
    assert client.v1.customers.retrieve(customer).id == customer
    assert [rule["hits"] for rule in local.faults()] == [2]


def test_a_probability_is_drawn_from_its_seed(local: LocalStripe) -> None:
    def pattern(seed: int) -> list[bool]:
        local.clear_faults()
        local.add_fault("error", status=503, method="GET", probability=0.4, seed=seed)
        client, struck = local.client(), []
        for _ in range(40):
            try:
                client.v1.customers.list({})
            except stripe.APIError:
                struck.append(True)
            else:
                struck.append(False)
        return struck

    first = pattern(7)
    assert pattern(7) == first
    assert pattern(8) != first
    assert 5 < sum(first) < 30


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "explosion"},
        {"kind": "error", "status": 404},
        {"kind": "drop", "when": "during"},
        {"kind": "drop", "probability": 2},
        {"kind": "drop", "colour": "blue"},
    ],
)
def test_a_rule_that_cannot_be_is_refused(local: LocalStripe, rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kind|status|when|probability|colour"):
        local.add_fault(**rule)
