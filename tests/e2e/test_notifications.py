"""Every notification once, with its content, at receivers of this machine: mail, Slack, webhook."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3

from infra.local.stack import LocalStack
from infra.local.stripe_server import StripeControl
from meterline.domain.messages import sign_webhook
from tests.e2e.billed import await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, Api, Webhooks
from tests.e2e.receivers import Receiver, run_receiver
from tests.e2e.test_authorizations import set_limits
from tests.e2e.test_books import make_event
from tests.e2e.test_runaway import CALL, TYPICAL_DAY, live_ordinary_days, report, unfreeze

WARNING = " of 100 credits"
SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


@pytest.fixture(scope="module")
def receiver(stack: LocalStack) -> Iterator[Receiver]:
    """A receiver that the stack's notifications go to."""
    with run_receiver() as receiver:
        text = json.dumps(
            {
                "slack_url": f"{receiver.url}/slack",
                "webhook_url": f"{receiver.url}/hook",
                "webhook_secret": SECRET,
            }
        )
        secret = {"SecretId": "meterline/notifications"}
        stack.client("secretsmanager").put_secret_value(**secret, SecretString=text)
        yield receiver
        stack.client("secretsmanager").put_secret_value(**secret, SecretString="{}")


def list_mail(stack: LocalStack, address: str, subject: str) -> list[Any]:
    """What the emulator's SES was asked to send to an address under a subject."""
    answer = urllib3.request("GET", f"{stack.aws_url}/_ministack/ses/messages")
    return [
        mail
        for mails in json.loads(answer.data)["messages"].values()
        for mail in mails
        if address in mail["To"] and subject in mail["Subject"]
    ]


def test_a_warning_is_mailed_and_sent_to_the_app_once(
    api: Api, stack: LocalStack, receiver: Receiver
) -> None:
    customer = "warned"
    api.put_customer(customer, email="warned@example.com", name="Warned & Sons")
    set_limits(api, customer, warn_at={"quantity": "100"})
    # The first try of the webhook meets a receiver that is down.
    receiver.failures["/hook"] = 1
    for _ in range(6):
        report(api, customer, CALL, datetime.now(UTC))
    await_value(lambda: len(list_mail(stack, "warned@example.com", WARNING)), 1)
    [mail] = list_mail(stack, "warned@example.com", WARNING)
    assert "asked to be warned at 100 credits" in mail["BodyText"]
    assert "Hello Warned & Sons," in mail["BodyText"]
    assert mail["Source"] == "billing@meterline.example"
    assert receiver.to("/hook", customer) == []
    # What failed is tried again: here at once, by taking the message's delay away.
    redeliver(stack, customer, "SoftLimitCrossed")
    await_value(lambda: len(receiver.to("/hook", customer)), 1)
    [call] = receiver.to("/hook", customer)
    assert call.told["type"] == "SoftLimitCrossed"
    assert call.told["data"]["customer"] == customer
    expected = sign_webhook(
        SECRET, call.headers["webhook-id"], int(call.headers["webhook-timestamp"]), call.body
    )
    assert call.headers["webhook-signature"] == expected["webhook-signature"]
    # The queue delivers at least once: as often as it likes, nobody is told again.
    for _ in range(3):
        redeliver(stack, customer, "SoftLimitCrossed")
    assert len(list_mail(stack, "warned@example.com", WARNING)) == 1
    assert len(receiver.to("/hook", customer)) == 1


def redeliver(stack: LocalStack, customer: str, happening: str) -> None:
    """Deliver a notification to `notify` as its queue does, and wait until it is through."""
    table = stack.outputs["AccountsTable"]
    items = stack.client("dynamodb").query(
        TableName=table,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
        ExpressionAttributeValues={
            ":pk": {"S": f"notices#{customer}"},
            ":sk": {"S": happening},
        },
    )["Items"]
    records = [
        {
            "messageId": secrets.token_hex(4),
            "body": json.dumps(
                {
                    "detail": {
                        "id": item["sk"]["S"],
                        "customer": customer,
                        "type": happening,
                        "at": item["at"]["S"],
                        "facts": json.loads(item["facts"]["S"]),
                    }
                }
            ),
        }
        for item in items
    ]
    assert records, "there is nothing to deliver"
    answer = stack.client("lambda").invoke(
        FunctionName=stack.outputs["NotifyFunctionName"],
        Payload=json.dumps({"Records": records}).encode(),
    )
    assert json.loads(answer["Payload"].read()) == {"batchItemFailures": []}


def test_a_freeze_and_its_end_are_told_in_slack_with_who_how_much_and_what_to_do(
    api: Api, stack: LocalStack, receiver: Receiver
) -> None:
    customer = "told-frozen"
    live_ordinary_days(api, customer)
    now = datetime.now(UTC)
    for _ in range(5):
        report(api, customer, 2 * TYPICAL_DAY, now - timedelta(minutes=2))
    await_value(lambda: len(receiver.to("/slack", customer)), 1)
    [call] = receiver.to("/slack", customer)
    text = call.told["text"]
    for told in (
        f"*{customer}* is frozen",
        "4800 credits in the last hour, 480 on a typical day",
        "Top action: agent.step. Top user: u_loop.",
        f"POST /v1/customers/{customer}/unfreeze",
    ):
        assert told in text
    await_value(lambda: len(list_mail(stack, f"{customer}@example.com", "Usage is paused")), 1)
    redeliver(stack, customer, "CustomerFrozen")
    assert len(receiver.to("/slack", customer)) == 1
    unfreeze(api, customer, b'{"reason": "Was <planned> & fine."}')
    await_value(lambda: len(receiver.to("/slack", "was unfrozen")), 1)
    [lifted] = receiver.to("/slack", "was unfrozen")
    assert "Was &lt;planned&gt; &amp; fine." in lifted.told["text"]


def test_an_alert_of_stripe_is_told_on_every_channel_once(
    api: Api, stack: LocalStack, receiver: Receiver, stripe_url: str, webhooks: Webhooks
) -> None:
    assert webhooks.secrets
    customer = "alerted"
    billing_customer = make_customer(api, stripe_url, customer)
    assert (
        api.put_customer(
            customer, billing_customer=billing_customer, email="alerted@example.com"
        ).status
        == 200
    )
    v1 = StripeControl(stripe_url, STRIPE_KEY).client().v1
    meters = {each.event_name: each.id for each in v1.billing.meters.list({}).data}
    v1.billing.alerts.create(
        {
            "alert_type": "usage_threshold",
            "title": "Half of the <b>plan</b>",
            "usage_threshold": {
                "gte": 500_000,
                "meter": meters["meterline_credits"],
                "recurrence": "one_time",
                "filters": [{"type": "customer", "customer": billing_customer}],
            },
        }
    )
    at = datetime.now(UTC) - timedelta(minutes=5)
    for number, quantity in enumerate(("499.5", "1", "20")):
        assert api.report(make_event(f"alert-{number}", customer, quantity, at)).status == 202
    await_value(lambda: len(list_mail(stack, "alerted@example.com", "Half of the")), 1)
    [mail] = list_mail(stack, "alerted@example.com", "Half of the")
    assert "500.5 credits are used; it was set to 500." in mail["BodyText"]
    await_value(lambda: len(receiver.to("/hook", customer)), 1)
    await_value(lambda: len(receiver.to("/slack", customer)), 1)
    assert "&lt;b&gt;plan" in receiver.to("/slack", customer)[0].told["text"]
    # The same event again, as webhooks come: nobody hears of it twice.
    [event] = [
        each
        for each in v1.events.list({"type": "billing.alert.triggered"}).data
        if each.data.object["customer"] == billing_customer
    ]
    message = {"id": event.id, "type": event.type, "customer": billing_customer, "created_s": 1}
    stack.client("dynamodb").delete_item(
        TableName=stack.outputs["InboxTable"], Key={"id": {"S": event.id}}
    )
    record = {"messageId": "again", "body": json.dumps(message)}
    answer = stack.client("lambda").invoke(
        FunctionName=stack.outputs["ApplyStripeEventFunctionName"],
        Payload=json.dumps({"Records": [record]}).encode(),
    )
    assert json.loads(answer["Payload"].read()) == {"batchItemFailures": []}
    told = api.call("GET", f"/v1/customers/{customer}/notifications", key=api.admin_key).told
    kinds = [each["type"] for each in told["notifications"]]
    assert kinds.count("BillingAlertTriggered") == 1
    assert len(receiver.to("/hook", customer)) == 1
