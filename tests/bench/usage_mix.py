"""Usage as the bench reports it: events like those of a product with several customers.

Standard library only, so that workers import it beside the layers as they are deployed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

ACTIONS = ("report.generate", "chat.reply", "email.draft", "search.answer")
_MODELS = (
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("openai", "gpt-5-mini"),
)


@dataclass(frozen=True, slots=True)
class Mix:
    """How many customers and users share the calls. A few of them make most of it."""

    name: str
    customers: int
    users: int
    """Per customer."""


ONE_CUSTOMER = Mix("1 customer, 20 users", 1, 20)
SAAS = Mix("50 customers of 20 users", 50, 20)


def customer_ids(mix: Mix) -> list[str]:
    """The ids of the mix's customers."""
    return [f"customer-{number:03d}" for number in range(mix.customers)]


class UsageSource:
    """Events of a mix, never the same twice. Deterministic by seed, but for the time."""

    def __init__(self, mix: Mix, seed: int, now: datetime | None = None) -> None:
        self._random = random.Random(seed)
        self._customers = customer_ids(mix)
        self._weights = [1 / (place + 1) for place in range(mix.customers)]
        self._users = mix.users
        self._now = now or datetime.now(UTC)
        self._made = 0
        self._seed = seed

    def events(self, count: int, meter: str = "credits") -> list[dict[str, Any]]:
        """`count` CloudEvents; sizes are log-normal, as in traces of LLM traffic."""
        return [
            self._event(customer, meter)
            for customer in self._random.choices(self._customers, self._weights, k=count)
        ]

    def _event(self, customer: str, meter: str) -> dict[str, Any]:
        draw = self._random
        self._made += 1
        provider, model = draw.choice(_MODELS)
        cached = min(draw.randrange(4000), draw.randrange(4000))
        at = self._now - timedelta(milliseconds=draw.randrange(2000))
        return {
            "specversion": "1.0",
            "id": f"req_{self._seed:x}{self._made:06x}{draw.getrandbits(48):012x}",
            "source": "backend/reports",
            "type": "meterline.usage",
            "subject": customer,
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z",
            "data": {
                "meter": meter,
                "user": f"user_{draw.randrange(self._users):04d}",
                "action": draw.choice(ACTIONS),
                "provider": provider,
                "model": model,
                "usage": {
                    "input_tokens": 1 + int(draw.lognormvariate(7, 1.2)),
                    "output_tokens": 1 + int(draw.lognormvariate(5.3, 0.9)),
                    "cache_read_tokens": cached,
                    "cache_write_tokens": 0,
                },
            },
        }


def pad_event(event: dict[str, Any], size_bytes: int) -> dict[str, Any]:
    """The event with longer texts, so that its compact JSON has exactly `size_bytes`."""
    padded: dict[str, Any] = json.loads(json.dumps(event))
    padded["data"]["response_id"] = padded["data"]["authorization"] = "x"
    # Where the contract lets texts be long: each field up to its own bound.
    rooms = (
        (padded["data"], "response_id", 128),
        (padded["data"], "authorization", 128),
        (padded["data"], "user", 128),
        (padded["data"], "action", 128),
        (padded["data"], "model", 128),
        (padded, "id", 200),
        (padded, "source", 200),
    )
    for holder, field, room in rooms:
        missing = size_bytes - size_of(padded)
        if field == "model":
            continue  # Another model would have no rate.
        holder[field] += "x" * max(0, min(missing, room - len(holder[field])))
    if size_of(padded) != size_bytes:
        raise ValueError(f"an event cannot have {size_bytes} bytes")
    return padded


def size_of(event: dict[str, Any]) -> int:
    """Bytes of the event as compact JSON."""
    return len(json.dumps(event, separators=(",", ":")).encode())


def call_of(events: Sequence[dict[str, Any]], api_key: str) -> dict[str, Any]:
    """The event with which API Gateway's HTTP API (payload 2.0) invokes `report_usage`."""
    body = json.dumps({"events": list(events)}, separators=(",", ":"))
    return {
        "version": "2.0",
        "routeKey": "POST /v1/usage",
        "rawPath": "/v1/usage",
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "accept-encoding": "gzip, deflate",
            "authorization": f"Bearer {api_key}",
            "content-length": str(len(body)),
            "content-type": "application/json",
            "host": "abcdefghij.execute-api.us-east-1.amazonaws.com",
            "user-agent": "meterline-bench/1.0",
            "x-amzn-trace-id": "Root=1-68e0f0aa-2f3b4c5d6e7f8a9b0c1d2e3f",
            "x-forwarded-for": "203.0.113.10",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefghij",
            "domainName": "abcdefghij.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "abcdefghij",
            "http": {
                "method": "POST",
                "path": "/v1/usage",
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.10",
                "userAgent": "meterline-bench/1.0",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "POST /v1/usage",
            "stage": "$default",
            "time": "22/Nov/2026:06:00:00 +0000",
            "timeEpoch": 1795327200000,
        },
        "body": body,
        "isBase64Encoded": False,
    }


def delivery_of(
    items: Sequence[dict[str, Any]], first_sequence: int, shard: str = "shardId-0001"
) -> dict[str, Any]:
    """The event with which Lambda hands a DynamoDB stream's new items to `project_usage`."""
    return {
        "shardId": shard,
        "Records": [
            {
                "eventID": f"{first_sequence + place:032x}",
                "eventName": "INSERT",
                "eventVersion": "1.1",
                "eventSource": "aws:dynamodb",
                "awsRegion": "us-east-1",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1795327200,
                    "Keys": {"k": item["k"]},
                    "NewImage": item,
                    "SequenceNumber": str(first_sequence + place),
                    "SizeBytes": 400,
                    "StreamViewType": "NEW_IMAGE",
                },
                "eventSourceARN": "arn:aws:dynamodb:us-east-1:123456789012:table/events/stream/1",
            }
            for place, item in enumerate(items)
        ],
        "window": {"start": "2026-11-22T06:00:00Z", "end": "2026-11-22T06:15:00Z"},
        "state": {},
        "isFinalInvokeForWindow": False,
        "isWindowTerminatedEarly": False,
    }
