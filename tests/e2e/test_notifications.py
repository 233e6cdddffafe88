"""Every notification once, with its content, at receivers of this machine: mail, Slack, webhook."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import urllib3

from infra.local.stack import LocalStack
from infra.local.stripe_account import StripeAccount
from infra.local.stripe_server import StripeControl
from meterline.domain.invoice_checks import HoldReason
from meterline.domain.messages import sign_webhook
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, Api, Run, Webhooks
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
        secret = {"SecretId": stack.outputs["NotificationsSecret"]}
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
    receiver.failures.append(("/hook", customer.encode()))
    for _ in range(6):
        report(api, customer, CALL, datetime.now(UTC))
    await_value(lambda: len(list_mail(stack, "warned@example.com", WARNING)), 1)
    await_value(lambda: len(receiver.failures), 0)
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


@pytest.fixture
def holding(stack: LocalStack) -> Iterator[None]:
    """The stack as deployed with `InvoiceSpikes=hold`."""
    functions = stack.client("lambda")
    names = [stack.resources[f"{name}Function"] for name in ("ApplyStripeEvent", "SettleInvoices")]

    def configure(what: str) -> None:
        for name in names:
            found = functions.get_function_configuration(FunctionName=name)
            variables = {**found["Environment"]["Variables"], "INVOICE_SPIKES": what}
            functions.update_function_configuration(
                FunctionName=name, Environment={"Variables": variables}
            )

    configure("hold")
    yield
    configure("tell")


def test_a_draft_far_above_the_last_one_is_told_held_and_let_go_by_an_operator(
    api: Api,
    stack: LocalStack,
    stripe_url: str,
    webhooks: Webhooks,
    receiver: Receiver,
    holding: None,
    run: Run,
) -> None:
    customer = "spiked"
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    v1 = account.client.v1
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=64)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, start + timedelta(days=2))
    # A first period of 1,200 credits, before we knew the customer; its invoice is sent.
    v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "payload": {
                "stripe_customer_id": subscriber.billing_customer,
                "value": "1200000",
            },
            "timestamp": int((start + timedelta(days=1)).timestamp()),
        }
    )
    account.advance(subscriber, subscriber.period_end + timedelta(hours=3))
    account.advance(subscriber, start + timedelta(days=46))
    put = api.put_customer(customer, billing_customer=subscriber.billing_customer)
    assert put.status == 200, put.body
    # The second one has 40,000, over HTTP as any app reports them.
    report(api, customer, Decimal(40_000), start + timedelta(days=45))
    billed = BilledUsage(stripe_url, subscriber.billing_customer, "meterline_credits")
    await_value(billed.total, 41_200_000)
    [item] = [
        each
        for each in v1.subscription_items.list({"subscription": subscriber.subscription}).data
        if each.price.id == account.prices["base"]
    ]
    renewal = datetime.fromtimestamp(item.current_period_end, UTC)
    account.advance(subscriber, renewal + timedelta(minutes=1))

    def read_drafts() -> list[Any]:
        listed = v1.invoices.list({"subscription": subscriber.subscription})
        return [each for each in listed.data if each.status == "draft"]

    [draft] = read_drafts()
    # Stripe's signed webhook is all that sets it off.
    await_value(lambda: len(receiver.to("/slack", draft.id)), 1)
    text = receiver.to("/slack", draft.id)[0].told["text"]
    assert f"*{customer}*: draft invoice {draft.id} is 224.00 USD, 746% of" in text
    assert "(30.00 USD)" in text
    assert ": 1.00 USD → 195.00 USD" in text
    assert f"books release {draft.id} --hold spike" in text

    def read_hold() -> tuple[bool, bool]:
        found = v1.invoices.retrieve(draft.id)
        marks = found.metadata.to_dict() if found.metadata is not None else {}
        return bool(found.auto_advance), HoldReason.SPIKE in marks

    await_value(read_hold, (False, True))
    account.advance(subscriber, renewal + timedelta(hours=3))
    assert [each.id for each in read_drafts()] == [draft.id], "Stripe's hour went by"
    told = run(
        *("books", "release", draft.id, "--hold", "spike", "--stripe-url", stripe_url),
        *("--actor", "ann", "--reason", "They know."),
    )
    assert "goes its way" in told.stdout
    assert read_hold() == (True, False)
    trail = run("books", "audit").stdout
    assert f"ann\trelease invoice (spike)\t{draft.id}\treleased\tThey know." in trail
    # Looked at again, it is neither held nor told of again.
    name = stack.outputs["SettleInvoicesFunctionName"]
    stack.client("lambda").invoke(FunctionName=name, Payload=b"{}")
    assert read_hold() == (True, False)
    account.advance(subscriber, renewal + timedelta(hours=6))
    final = v1.invoices.retrieve(draft.id)
    assert (final.status, final.total) == ("open", 22_400)
    assert len(receiver.to("/slack", draft.id)) == 1
