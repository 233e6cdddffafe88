"""Customers whose dashboards are looked at, and what the ledger itself says of them.

The ledger is read item by item with boto3 and added up here: no code of the service has a part in
what a page is compared with.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from infra.local.stack import LocalStack
from tests.e2e.conftest import Answer, Api

USERS = [
    {"id": "u_kim", "name": "Kim Larsen", "role": "admin"},
    {"id": "u_noor", "name": "Noor Haddad", "role": "member"},
    {"id": "u_quiet", "name": "Sam Quiet", "role": "member"},
]
ACTIONS = ("report.generate", "chat.reply", "email.draft", "search.deep")


@dataclass(frozen=True, slots=True)
class Tally:
    """What the ledger's own items add up to in a span of time."""

    total: Decimal = Decimal(0)
    events: int = 0
    days: Mapping[date, tuple[Decimal, int]] = field(default_factory=dict)
    actions: Mapping[str | None, Decimal] = field(default_factory=dict)
    users: Mapping[str | None, Decimal] = field(default_factory=dict)


class DashboardSettings:
    """What an operator sets for the deployed pages: the secret's sign-in, and who may frame them.

    A function whose configuration changes starts anew, and reads its secret then.
    """

    def __init__(self, stack: LocalStack) -> None:
        self._functions, self._secrets = stack.client("lambda"), stack.client("secretsmanager")
        self._name = stack.outputs["ServeDashboardFunctionName"]

    @contextmanager
    def changed(
        self, *, sign_in: Mapping[str, Any] | None = None, frame_origins: str = ""
    ) -> Iterator[None]:
        """Within it, these hold."""
        told = self._functions.get_function_configuration(FunctionName=self._name)
        before = told["Environment"]["Variables"]
        secret_id = before["DASHBOARD_SECRET_ID"]
        secret = self._secrets.get_secret_value(SecretId=secret_id)["SecretString"]
        now = json.loads(secret) | ({"sign_in": sign_in} if sign_in is not None else {})
        try:
            self._secrets.put_secret_value(SecretId=secret_id, SecretString=json.dumps(now))
            self._configure({**before, "FRAME_ORIGINS": frame_origins, "STARTED_FOR": "a test"})
            yield
        finally:
            self._secrets.put_secret_value(SecretId=secret_id, SecretString=secret)
            self._configure(before)

    def _configure(self, variables: Mapping[str, str]) -> None:
        environment = {"Variables": dict(variables)}
        self._functions.update_function_configuration(
            FunctionName=self._name, Environment=environment
        )
        self._functions.get_waiter("function_updated").wait(FunctionName=self._name)


def tally_ledger(
    stack: LocalStack, customer: str, start: datetime, end: datetime, meter: str = "credits"
) -> Tally:
    """Add up the events of [start, end) from the table's raw items."""
    pages = (
        stack.client("dynamodb")
        .get_paginator("scan")
        .paginate(TableName=stack.outputs["EventsTable"], ConsistentRead=True)
    )
    total, events = Decimal(0), 0
    days: defaultdict[date, tuple[Decimal, int]] = defaultdict(lambda: (Decimal(0), 0))
    actions: defaultdict[str | None, Decimal] = defaultdict(Decimal)
    users: defaultdict[str | None, Decimal] = defaultdict(Decimal)
    for page in pages:
        for item in page["Items"]:
            at = datetime.fromisoformat(item["t"]["S"].replace("Z", "+00:00"))
            is_theirs = item["k"]["S"].split("\x1f")[0] == customer
            if not is_theirs or item["m"]["S"] != meter or not start <= at < end:
                continue
            quantity = Decimal(item["q"]["N"])
            total, events = total + quantity, events + 1
            sum_of_day, count = days[at.date()]
            days[at.date()] = (sum_of_day + quantity, count + 1)
            actions[item["a"]["S"] if "a" in item else None] += quantity
            users[item["u"]["S"] if "u" in item else None] += quantity
    return Tally(total, events, dict(days), dict(actions), dict(users))


def count_events(stack: LocalStack, customer: str, meter: str = "credits") -> int:
    """How many of a customer's events are in the totals."""
    items = stack.client("dynamodb").query(
        TableName=stack.outputs["TotalsTable"],
        KeyConditionExpression="pk = :pk AND begins_with(sk, :day)",
        ExpressionAttributeValues={":pk": {"S": f"{customer}#{meter}"}, ":day": {"S": "day#"}},
        ConsistentRead=True,
    )["Items"]
    return sum(int(item["n"]["N"]) for item in items)


def make_events(
    customer: str, moments: Iterable[datetime], dice: Random, users: Iterable[str]
) -> list[dict[str, Any]]:
    """Events at these moments; some name no user, some no action."""
    known = [*users]
    made = []
    for place, at in enumerate(moments):
        data: dict[str, Any] = {
            "meter": "credits",
            "quantity": f"{dice.lognormvariate(1.2, 0.9):.3f}",
        }
        if dice.random() < 0.95:
            data["user"] = dice.choice(known)
        if dice.random() < 0.95:
            data["action"] = dice.choice(ACTIONS)
        made.append(
            {
                "specversion": "1.0",
                "id": f"{customer}-{place}",
                "source": "tests",
                "type": "meterline.usage",
                "subject": customer,
                "time": at.isoformat(),
                "data": data,
            }
        )
    return made


def spread(start: datetime, end: datetime, count: int, dice: Random) -> list[datetime]:
    """So many moments between two others, in order."""
    span_s = (end - start).total_seconds()
    return sorted(start + timedelta(seconds=dice.random() * span_s) for _ in range(count))


def read_usage(api: Api, customer: str) -> dict[str, Any]:
    """`GET /v1/customers/{id}/usage`."""
    answer = api.call("GET", f"/v1/customers/{customer}/usage", key=api.admin_key)
    assert answer.status == 200, answer.body
    told: dict[str, Any] = answer.told
    return told


def open_portal(api: Api, customer: str, **told: Any) -> Answer:
    """`POST /v1/portal-sessions`."""
    body = json.dumps({"customer": customer, **told}).encode()
    return api.call("POST", "/v1/portal-sessions", key=api.admin_key, body=body)


def link(api: Api, customer: str, **told: Any) -> str:
    """A link to a customer's dashboard."""
    answer = open_portal(api, customer, **told)
    assert answer.status == 201, answer.body
    return str(answer.told["url"])


def sign_in(api: Api, customer: str, **told: Any) -> str:
    """The session cookie, `name=value`, that a link is exchanged for."""
    path = link(api, customer, **told).removeprefix(api.url)
    answer = api.call("GET", path)
    assert answer.status == 303, answer.body
    return str(answer.headers["set-cookie"]).partition(";")[0]


def read_period(told: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """The period of an answer."""
    return (
        datetime.fromisoformat(told["period"]["start"].replace("Z", "+00:00")),
        datetime.fromisoformat(told["period"]["end"].replace("Z", "+00:00")),
    )


def hour_before(now: datetime) -> datetime:
    """The last whole hour."""
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def write_number(quantity: Decimal) -> str:
    """As the page writes quantities: thousands apart, no zeros at the end."""
    text = f"{quantity:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
