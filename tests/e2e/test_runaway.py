"""A runaway agent on the deployed stack: refused within seconds of the crossing, then let go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from infra.local.stack import LocalStack
from tests.e2e.billed import await_value
from tests.e2e.conftest import Api
from tests.e2e.dashboards import count_events
from tests.e2e.described import check_described
from tests.e2e.test_authorizations import ask, make_event, set_limits

TYPICAL_DAY = Decimal(480)
"""Credits: 1,000 tokens a minute for eight hours."""
CALL = Decimal(20)
"""Ten calls of 20,000 tokens a minute: 200,000 tokens a minute."""
GOAL_S = 5.0


def report(api: Api, customer: str, quantity: Decimal, at: datetime) -> None:
    event = make_event(customer, str(quantity))
    event["time"] = at.isoformat()
    event["data"] |= {"action": "agent.step", "user": "u_loop"}
    answer = api.report(event)
    assert answer.told["accepted"] == 1, answer.body


def live_ordinary_days(api: Api, customer: str) -> None:
    api.put_customer(customer, email=f"{customer}@example.com")
    for ago in range(1, 8):
        report(api, customer, TYPICAL_DAY, datetime.now(UTC) - timedelta(days=ago))


def list_notifications(api: Api, customer: str) -> list[dict[str, Any]]:
    path = f"/v1/customers/{customer}/notifications"
    answer = api.call("GET", path, key=api.admin_key)
    check_described(api, "GET", "/v1/customers/{id}/notifications", answer)
    found: list[dict[str, Any]] = answer.told["notifications"]
    return found


def unfreeze(api: Api, customer: str, body: bytes, key: str | None = None) -> Any:
    path = f"/v1/customers/{customer}/unfreeze"
    answer = api.call("POST", path, key=key or api.admin_key, body=body)
    check_described(api, "POST", "/v1/customers/{id}/unfreeze", answer)
    return answer


def measure_refusal_s(is_refused: Callable[[], bool]) -> float:
    began_s = time.monotonic()
    while not is_refused():
        assert time.monotonic() - began_s < 240, "nobody stopped it"
    return time.monotonic() - began_s


def measure_counting_s(api: Api, stack: LocalStack, customer: str) -> float:
    """How long this machine takes, now, from a report to its totals."""
    before = count_events(stack, customer)
    began_s = time.monotonic()
    report(api, customer, CALL, datetime.now(UTC))
    await_value(lambda: count_events(stack, customer), before + 1)
    return time.monotonic() - began_s


def test_a_runaway_agent_is_refused_within_five_seconds_of_the_crossing(
    api: Api, stack: LocalStack, record_property: Callable[[str, object], None]
) -> None:
    customer = "runaway"
    live_ordinary_days(api, customer)
    # Forty minutes of this day, or what there is of it: actions are named by the day.
    now = datetime.now(UTC)
    began = max(now - timedelta(minutes=40), now.replace(hour=0, minute=0, second=0))
    pause = min(timedelta(seconds=6), (now - began) / 240)
    used, calls = Decimal(0), 0
    while used < 10 * TYPICAL_DAY:
        assert ask(api, customer, str(CALL)).told["decision"] == "allow", "it was stopped too early"
        report(api, customer, CALL, began + pause * calls)
        used += CALL
        calls += 1

    def is_refused() -> bool:
        return bool(ask(api, customer, str(CALL)).told["code"] == "customer_frozen")

    refusal_s = measure_refusal_s(is_refused)
    slipped_tokens = round(refusal_s * 200_000 / 60)
    print(
        f"\nrunaway: crossing after {calls * pause / timedelta(minutes=1):.0f} minutes, "
        f"refused {refusal_s:.2f} s later, {slipped_tokens:,} tokens slipped through"
    )
    record_property("refusal_s", refusal_s)
    # Work that was done before the refusal is recorded all the same.
    counting_s = measure_counting_s(api, stack, customer)
    # Where the mere counting of an event takes seconds, the machine is busy, or slow.
    assert refusal_s < max(GOAL_S, 5 * counting_s)
    [frozen] = [
        each for each in list_notifications(api, customer) if each["type"] == "CustomerFrozen"
    ]
    assert Decimal(frozen["facts"]["used_last_hour"]) >= 10 * TYPICAL_DAY
    assert frozen["facts"]["top_action"] == "agent.step"
    assert frozen["facts"]["top_user"] == "u_loop"
    lifted = unfreeze(api, customer, b'{"reason": "The loop was stopped."}').told
    assert lifted["reason"] == "breaker"
    assert ask(api, customer, "1").told["decision"] == "allow"
    report(api, customer, CALL, datetime.now(UTC) - timedelta(minutes=1))
    await_value(lambda: list_notifications(api, customer)[0]["type"], "CustomerUnfrozen")
    assert ask(api, customer, "1").told["decision"] == "allow", "frozen again by the same usage"


def test_nothing_passes_a_hard_limit_when_calls_are_authorized(api: Api) -> None:
    customer = "limited-runaway"
    live_ordinary_days(api, customer)
    # Days before this month are of another period: only what this one holds counts.
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = TYPICAL_DAY * sum(
        datetime.now(UTC) - timedelta(days=ago) >= month for ago in range(1, 8)
    )
    limit = before + 100
    set_limits(api, customer, stop_at={"quantity": str(limit)})
    spent = Decimal(0)
    for _ in range(10):
        asked = ask(api, customer, str(CALL)).told
        if asked["decision"] == "deny":
            continue
        event = make_event(customer, str(CALL), asked["authorization"])
        assert api.report(event).told["accepted"] == 1
        spent += CALL
    assert spent == 100
    await_value(
        lambda: {each["type"] for each in list_notifications(api, customer)} & {"HardLimitReached"},
        {"HardLimitReached"},
    )


@pytest.mark.parametrize(
    ("customer", "body", "status"),
    [
        ("runaway-none", b'{"reason": "x"}', 404),
        ("never-frozen", b'{"reason": "x"}', 409),
        ("never-frozen", b"{}", 422),
        ("never-frozen", b'{"reason": ""}', 422),
        ("never-frozen", b'{"reason": "   "}', 422),
        ("never-frozen", b'{"reason": 1}', 422),
        ("never-frozen", b'{"reason": "a\\u0000"}', 422),
        ("never-frozen", json.dumps({"reason": "x" * 501}).encode(), 422),
        ("never-frozen", b"", 400),
        ("never-frozen", b"[]", 422),
        ("a%20b", b'{"reason": "x"}', 400),
    ],
)
def test_bad_unfreezes_are_told_what_is_wrong(
    api: Api, customer: str, body: bytes, status: int
) -> None:
    api.put_customer("never-frozen")
    assert unfreeze(api, customer, body).status == status


def test_an_unfreeze_wants_an_admin_key(api: Api) -> None:
    assert unfreeze(api, "never-frozen", b'{"reason": "x"}', api.usage_key).status == 403
