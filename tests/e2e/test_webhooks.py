"""Stripe's webhooks on the deployed stack: delivered, forged, repeated, and never delivered."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from infra.local.stack import LocalStack
from infra.local.stripe_server import StripeControl
from infra.local.stripe_server.webhooks import sign
from meterline.domain.webhooks import TOLERANCE_S
from meterline.services.receive_stripe_webhook import MAX_BODY_BYTES
from tests.e2e.billed import await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, Api, Webhooks


@dataclass
class Door:
    """The deployed function URL, and Stripe's side of it."""

    url: str
    secrets: dict[str, str]
    stack: LocalStack
    control: StripeControl
    http: urllib3.PoolManager

    @property
    def secret(self) -> str:
        """What the endpoint of snapshot events is signed with."""
        return self.secrets["webhook"]

    def post(self, body: bytes, header: str | None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        if header is not None:
            headers["Stripe-Signature"] = header
        answer = self.http.request("POST", self.url, body=body, headers=headers)
        return answer.status, json.loads(answer.data)

    def inbox(self) -> dict[str, dict[str, Any]]:
        """Events that were written down, by id."""
        pages = (
            self.stack.client("dynamodb")
            .get_paginator("scan")
            .paginate(TableName=self.stack.outputs["InboxTable"], ConsistentRead=True)
        )
        return {item["id"]["S"]: item for page in pages for item in page["Items"]}

    def subscription(self, customer: str) -> dict[str, Any]:
        """What the accounts table says of the customer's subscription."""
        answer = self.stack.client("dynamodb").get_item(
            TableName=self.stack.outputs["AccountsTable"],
            Key={"pk": {"S": f"customer#{customer}"}, "sk": {"S": "subscription"}},
            ConsistentRead=True,
        )
        return dict(answer.get("Item", {}))

    def invoke(self, function: str) -> dict[str, Any]:
        """Call a scheduled function now."""
        answer = self.stack.client("lambda").invoke(
            FunctionName=self.stack.outputs[f"{function}FunctionName"], Payload=b"{}"
        )
        assert "FunctionError" not in answer, answer["Payload"].read()
        told: dict[str, Any] = json.loads(answer["Payload"].read())
        return told


@pytest.fixture(scope="module")
def door(stack: LocalStack, stripe_url: str, webhooks: Webhooks) -> Door:
    """The webhooks of this session's Stripe go to this session's stack."""
    control = StripeControl(stripe_url, STRIPE_KEY)
    http = urllib3.PoolManager(retries=False, timeout=60.0)
    return Door(webhooks.url, webhooks.secrets, stack, control, http)


@pytest.fixture(autouse=True)
def fair_weather(door: Door) -> Iterator[None]:
    """Every test begins with webhooks that are delivered once and in order."""
    yield
    door.control.set_webhook_faults()


def make_body(event_id: str, event_type: str = "customer.subscription.updated") -> bytes:
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created": int(time.time()),
        "data": {"object": {"id": "sub_none", "customer": "cus_nobody"}},
    }
    return json.dumps(event).encode()


def attack(name: str, door: Door) -> tuple[bytes, str | None]:
    """The body and the signature header of one attack."""
    body, now_s = make_body(f"evt_attack_{name.replace(' ', '_')}"), int(time.time())
    good = sign(body, [door.secret], now_s)
    match name:
        case "no signature":
            return body, None
        case "empty signature":
            return body, ""
        case "wrong secret":
            return body, sign(body, ["whsec_guessed"], now_s)
        case "old timestamp":
            return body, sign(body, [door.secret], now_s - TOLERANCE_S - 60)
        case "future timestamp":
            return body, sign(body, [door.secret], now_s + TOLERANCE_S + 60)
        case "timestamp changed":
            return body, good.replace(str(now_s), str(now_s + 1))
        case "tampered body":
            return body.replace(b"cus_nobody", b"cus_victim"), good
        case "former scheme":
            return body, good.replace("v1=", "v0=")
        case "1 MB":
            return sized(1024 * 1024, door, now_s)
        case "just too large":
            return sized(MAX_BODY_BYTES + 1, door, now_s)
        case "bad JSON":
            return b'{"id": ', sign(b'{"id": ', [door.secret], now_s)
        case "no event":
            return b"[1, 2]", sign(b"[1, 2]", [door.secret], now_s)
        case "empty body":
            return b"", sign(b"", [door.secret], now_s)
    raise AssertionError(name)


def sized(size: int, door: Door, now_s: int) -> tuple[bytes, str]:
    body = b'{"id": "' + b"x" * (size - 10) + b'"}'
    return body, sign(body, [door.secret], now_s)


ATTACKS = {
    "no signature": (400, "signature_missing"),
    "empty signature": (400, "signature_missing"),
    "wrong secret": (400, "signature_mismatch"),
    "old timestamp": (400, "signature_expired"),
    "future timestamp": (400, "signature_expired"),
    "timestamp changed": (400, "signature_mismatch"),
    "tampered body": (400, "signature_mismatch"),
    "former scheme": (400, "signature_missing"),
    "1 MB": (413, "body_too_large"),
    "just too large": (413, "body_too_large"),
    "bad JSON": (400, "invalid_json"),
    "no event": (400, "invalid_body"),
    "empty body": (400, "invalid_json"),
}


@pytest.fixture(scope="module")
def rows(pytestconfig: pytest.Config) -> Iterator[list[str]]:
    """The table of attacks and what each came to, printed when all is done."""
    rows: list[str] = []
    yield rows
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("", *rows, f"{len(rows)} attacks", sep="\n")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_answered_with_its_reason_and_leaves_nothing_behind(
    door: Door, name: str, rows: list[str]
) -> None:
    status, code = ATTACKS[name]
    body, header = attack(name, door)
    answered, told = door.post(body, header)
    assert (answered, told["code"]) == (status, code)
    assert not any(event.startswith("evt_attack") for event in door.inbox())
    rows.append(f"{name:<20} {len(body):>9,} bytes  {answered} {told['code']}")


def test_only_post_is_answered(door: Door) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert door.http.request(method, door.url).status == 405


def test_a_replay_in_time_is_answered_and_changes_nothing(door: Door) -> None:
    body = make_body("evt_replayed")
    header = sign(body, [door.secret], int(time.time()))
    answers = [door.post(body, header) for _ in range(3)]
    assert [told["received"] for _status, told in answers] == ["queued", "repeated", "repeated"]
    assert {status for status, _told in answers} == {200}
    await_value(lambda: "done_at" in door.inbox()["evt_replayed"], True)


def test_an_event_of_an_unknown_type_is_answered_and_not_kept(door: Door) -> None:
    body = make_body("evt_unknown", "radar.early_fraud_warning.created")
    status, told = door.post(body, sign(body, [door.secret], int(time.time())))
    assert (status, told) == (200, {"received": "ignored"})
    assert "evt_unknown" not in door.inbox()


def test_a_body_reaches_the_check_byte_for_byte(door: Door) -> None:
    told = json.loads(make_body("evt_bytes")) | {"livemode": False, "note": "Zürich — \u2028 ✓"}
    body = json.dumps(told, ensure_ascii=False, indent=1).encode()
    status, _told = door.post(body, sign(body, [door.secret], int(time.time())))
    assert status == 200


def test_during_a_rotation_old_and_new_secret_count(door: Door) -> None:
    new = "whsec_rotated_in"
    door.stack.store_webhook_secrets({**door.secrets, "webhook_new": new})
    body = make_body("evt_rotation_new")

    # Forged calls may have used up the moment's fresh look at the secrets; Stripe tries again too.
    def deliver() -> int:
        return door.post(body, sign(body, [new], int(time.time())))[0]

    await_value(deliver, 200)
    body_of_old = make_body("evt_rotation_old")
    status, told = door.post(body_of_old, sign(body_of_old, [door.secret], int(time.time())))
    assert (status, told["received"]) == (200, "queued")
    both = make_body("evt_rotation_both")
    signed = sign(both, ["whsec_unknown", new], int(time.time()))
    assert door.post(both, signed)[0] == 200


def test_a_cancelled_subscription_is_known_although_its_webhooks_repeat_and_come_in_disorder(
    door: Door, api: Api, stripe_url: str
) -> None:
    door.control.set_webhook_faults(repeat_probability=1.0, shuffle_window_s=0.2, seed=7)
    billing_customer = make_customer(api, stripe_url, "webhook_cancels")
    client = door.control.client()
    [subscription] = client.v1.subscriptions.list({"customer": billing_customer}).data
    client.v1.subscriptions.update(subscription.id, {"metadata": {"note": "first"}})
    client.v1.subscriptions.cancel(subscription.id)
    await_value(lambda: door.subscription("webhook_cancels").get("status", {}).get("S"), "canceled")


def test_what_no_webhook_brought_is_found_by_the_poll(
    door: Door, api: Api, stripe_url: str
) -> None:
    billing_customer = make_customer(api, stripe_url, "webhook_lost")
    client = door.control.client()
    [subscription] = client.v1.subscriptions.list({"customer": billing_customer}).data
    door.control.set_webhook_faults(drop_probability=1.0)
    client.v1.subscriptions.cancel(subscription.id)
    assert door.subscription("webhook_lost")["status"]["S"] == "active"
    polled = door.invoke("PollStripeEvents")
    assert polled["missed"] >= 1
    await_value(lambda: door.subscription("webhook_lost")["status"]["S"], "canceled")
    assert door.invoke("PollStripeEvents")["missed"] == 0


def test_usage_that_stripe_drops_after_taking_it_is_on_record(door: Door) -> None:
    client = door.control.client()
    client.v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "payload": {"stripe_customer_id": "cus_gone", "value": "5"},
            "identifier": "ml_dropped",
        }
    )
    door.control.settle()

    def record() -> str:
        answer = door.stack.client("dynamodb").get_item(
            TableName=door.stack.outputs["BooksTable"],
            Key={"pk": {"S": "dropped#ml_dropped"}, "sk": {"S": "report"}},
        )
        code = answer.get("Item", {}).get("code", {}).get("S")
        return str(code)

    await_value(record, "meter_event_customer_not_found")
