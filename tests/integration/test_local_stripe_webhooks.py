"""Deliveries as a receiver sees them: signed, repeated, shuffled, dropped, tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stripe

from infra.local.stripe_server import LocalStripe


@dataclass
class Receiver:
    """A webhook endpoint of the test; `statuses` are answered in turn, then 200."""

    url: str
    received: list[tuple[bytes, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes, signature: str) -> int:
        with self.arrived:
            self.received.append((body, signature))
            self.arrived.notify_all()
            return self.statuses.pop(0) if self.statuses else 200

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= count, timeout=60)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = state.take(body, self.headers["Stripe-Signature"])
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local


@pytest.fixture
def local(server: LocalStripe) -> LocalStripe:
    server.reset()
    server.set_webhook_faults()
    return server


@pytest.fixture
def client(local: LocalStripe) -> stripe.StripeClient:
    return local.client()


def _listen(client: stripe.StripeClient, receiver: Receiver, *events: Any) -> tuple[str, str]:
    made = client.v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": list(events) or ["*"]}
    )
    assert made.secret is not None
    return made.id, made.secret


def _read(client: stripe.StripeClient, receiver: Receiver, secret: str) -> list[stripe.Event]:
    return [
        client.construct_event(body, signature, secret) for body, signature in receiver.received
    ]


def test_a_delivery_verifies_with_the_sdk_and_holds_the_object(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    _, secret = _listen(client, receiver, "customer.created")
    customer = client.v1.customers.create({"name": "acme"}, {"idempotency_key": "k"})
    client.v1.customers.update(customer.id, {"name": "other"})
    assert local.settle()
    (event,) = _read(client, receiver, secret)
    assert event.type == "customer.created"
    shown = event.to_dict()
    assert shown["data"]["object"]["name"] == "acme"
    assert shown["request"]["idempotency_key"] == "k"
    assert client.v1.events.retrieve(event.id).to_dict()["pending_webhooks"] == 0


def test_a_wrong_secret_or_a_changed_body_does_not_verify(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    _, secret = _listen(client, receiver)
    client.v1.customers.create({})
    assert local.settle()
    body, signature = receiver.received[0]
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body, signature, "whsec_wrong")
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body.replace(b"customer", b"costumer"), signature, secret)


def test_while_a_secret_is_rolled_both_verify_and_then_only_the_new_one(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    endpoint, old = _listen(client, receiver)
    new = local.roll_webhook_secret(endpoint)
    client.v1.customers.create({})
    assert local.settle()
    body, signature = receiver.received[0]
    for secret in (old, new):
        client.construct_event(body, signature, secret)
    newest = local.roll_webhook_secret(endpoint, keep_old=False)
    client.v1.customers.create({})
    assert local.settle()
    body, signature = receiver.received[1]
    client.construct_event(body, signature, newest)
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body, signature, new)


def test_a_disabled_endpoint_gets_nothing(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    endpoint, _ = _listen(client, receiver)
    client.v1.webhook_endpoints.update(endpoint, {"disabled": True})
    client.v1.customers.create({})
    assert local.settle()
    assert receiver.received == []


def test_events_come_in_order_when_nothing_is_wrong(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    _, secret = _listen(client, receiver)
    names = [f"c{number}" for number in range(20)]
    for name in names:
        client.v1.customers.create({"name": name})
    assert local.settle()
    events = _read(client, receiver, secret)
    assert [event.to_dict()["data"]["object"]["name"] for event in events] == names


def test_a_failed_delivery_is_tried_again_with_the_same_event(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    local.set_webhook_faults(retry_delays_s=[0.01, 0.01])
    _, secret = _listen(client, receiver)
    receiver.statuses = [500, 302]
    client.v1.customers.create({})
    receiver.wait_for(3)
    assert local.settle()
    assert len({event.id for event in _read(client, receiver, secret)}) == 1
    (delivery,) = local.deliveries()
    assert (delivery["outcome"], delivery["statuses"]) == ("delivered", [500, 302, 200])


def test_a_delivery_that_never_succeeds_is_given_up_but_stays_in_the_events_list(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    local.set_webhook_faults(retry_delays_s=[0.01])
    _listen(client, receiver)
    receiver.statuses = [500, 500]
    client.v1.customers.create({})
    receiver.wait_for(2)
    assert local.settle()
    (delivery,) = local.deliveries()
    assert delivery["outcome"] == "failed"
    assert client.v1.events.retrieve(delivery["event"]).type == "customer.created"


def test_deliveries_are_repeated_shuffled_and_dropped_when_asked(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    local.set_webhook_faults(
        repeat_probability=0.5, drop_probability=0.2, shuffle_window_s=0.3, seed=3
    )
    _, secret = _listen(client, receiver)
    names = [f"c{number}" for number in range(30)]
    for name in names:
        client.v1.customers.create({"name": name})
    assert local.settle()
    got = [event.to_dict()["data"]["object"]["name"] for event in _read(client, receiver, secret)]
    outcomes = [row["outcome"] for row in local.deliveries()]
    assert len(set(got)) == outcomes.count("delivered") < len(names)
    assert outcomes.count("dropped") > 0
    assert len(got) > len(set(got))
    assert [name for name in names if name in got] != list(dict.fromkeys(got))
    missed = {
        event.to_dict()["data"]["object"]["name"]
        for event in client.v1.events.list({"type": "customer.created", "limit": 100}).data
    } - set(got)
    assert len(missed) == outcomes.count("dropped")


def test_a_thin_event_is_delivered_without_data_and_fetched_with_it(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    made = client.v2.core.event_destinations.create(
        {
            "name": "meter errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": receiver.url},
            "include": ["webhook_endpoint.signing_secret"],
        }
    )
    assert made.webhook_endpoint is not None
    secret = made.webhook_endpoint.signing_secret
    assert secret is not None
    client.v1.billing.meters.create(
        {
            "display_name": "Credits",
            "event_name": "credits",
            "default_aggregation": {"formula": "sum"},
        }
    )
    client.v1.billing.meter_events.create(
        {
            "event_name": "credits",
            "identifier": "lost",
            "payload": {"stripe_customer_id": "cus_nobody", "value": "5"},
        }
    )
    assert local.settle()
    body, signature = receiver.received[0]
    assert b"error_types" not in body
    notification = client.parse_event_notification(body, signature, secret)
    assert isinstance(
        notification, stripe.events.V1BillingMeterErrorReportTriggeredEventNotification
    )
    event = notification.fetch_event()
    assert event.data.reason.error_types[0].code == "meter_event_customer_not_found"
    assert event.data.reason.error_types[0].sample_errors[0].request.identifier == "lost"
    assert notification.fetch_related_object().event_name == "credits"


START = 1_800_000_000


def _subscribe(client: stripe.StripeClient) -> tuple[str, stripe.Subscription]:
    """A customer who pays by card on a clock of its own, from START on: the clock, and what it
    pays for."""
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START})
    customer = client.v1.customers.create(
        {
            "test_clock": clock.id,
            "payment_method": "pm_card_visa",
            "invoice_settings": {"default_payment_method": "pm_card_visa"},
        }
    )
    price = client.v1.prices.create(
        {
            "product_data": {"name": "Flat"},
            "currency": "usd",
            "unit_amount": 100,
            "recurring": {"interval": "month"},
        }
    )
    items: Any = {"customer": customer.id, "items": [{"price": price.id}]}
    return clock.id, client.v1.subscriptions.create(items)


def test_a_renewal_sends_its_invoices_and_the_subscriptions_changes(
    local: LocalStripe, client: stripe.StripeClient, receiver: Receiver
) -> None:
    clock, _ = _subscribe(client)
    assert local.settle()
    _, secret = _listen(client, receiver)
    client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START + 32 * 86_400})
    assert local.settle()
    assert [event.type for event in _read(client, receiver, secret)] == [
        "test_helpers.test_clock.advancing",
        "invoice.upcoming",
        "invoice.created",
        "customer.subscription.updated",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "test_helpers.test_clock.ready",
    ]


def test_a_charge_that_fails_makes_the_subscription_past_due_until_it_is_paid(
    local: LocalStripe, client: stripe.StripeClient
) -> None:
    clock, subscription = _subscribe(client)
    customer = str(subscription.customer)
    bad = client.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": customer})
    client.v1.customers.update(customer, {"invoice_settings": {"default_payment_method": bad.id}})
    client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START + 32 * 86_400})
    assert client.v1.subscriptions.retrieve(subscription.id).status == "past_due"
    renewal = client.v1.invoices.list({"subscription": subscription.id}).data[0]
    assert (renewal.status, renewal.attempt_count) == ("open", 1)
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(str(renewal.id))
    paid = client.v1.invoices.pay(str(renewal.id), {"payment_method": "pm_card_visa"})
    assert paid.status == "paid"
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"
