"""Customers: what a PUT does, what a list shows, and a subscription that is kept in step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from meterline.catalog import load_plans
from meterline.catalog.versions import Effective
from meterline.domain.customers import MAX_USERS, Role
from meterline.domain.periods import Period
from meterline.errors import (
    InvalidRequestError,
    NotFoundError,
    StorageUnavailableError,
    SupersededError,
)
from meterline.schemas.customers import (
    CustomerInput,
    read_cursor,
    read_limit,
    write_account,
    write_cursor,
)
from meterline.services.manage_customers import ManageCustomers
from meterline.services.sync_subscriptions import SyncSubscriptions
from tests.customer_fakes import FakeAccounts, FakeSubscriptions
from tests.dashboard_fakes import make_subscription

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
START = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
SUBSCRIPTION = make_subscription(
    START,
    datetime(2026, 12, 3, 9, 41, 7, tzinfo=UTC),
    prices=("price_1", "price_2"),
    metered_item="si_2",
    meter=None,
    synced_at=NOW,
)


class World:
    """A service over fakes."""

    def __init__(self) -> None:
        self.accounts = FakeAccounts()
        self.billing = FakeSubscriptions()
        self.billing.by_customer["cus_1"] = SUBSCRIPTION
        self.plans = Effective([(START, load_plans())])
        self.sync = SyncSubscriptions(self.accounts, self.billing, self.plans)
        self.manage = ManageCustomers(self.accounts, self.accounts, self.sync, self.plans)

    def put(self, customer: str = "acme", **told: Any) -> Any:
        body = {"name": "Acme", "plan": "pro", **told}
        return self.manage.put(customer, CustomerInput.model_validate(body), NOW)


@pytest.fixture
def world() -> World:
    return World()


def test_a_billing_customer_brings_its_subscription_with_it(world: World) -> None:
    put = world.put(billing_customer="cus_1")
    assert put.sync_failure is None
    assert put.account.subscription == replace(SUBSCRIPTION, meter="credits")
    shown = write_account(put.account)
    assert shown["subscription"]["current_period"] == {
        "start": "2026-11-03T09:41:07.000Z",
        "end": "2026-12-03T09:41:07.000Z",
    }
    assert shown["subscription"]["meter"] == "credits"


def test_a_billing_layer_that_is_down_does_not_lose_the_put_and_the_next_one_asks_again(
    world: World,
) -> None:
    world.billing.is_down = True
    put = world.put(billing_customer="cus_1")
    assert put.sync_failure == "HTTP 500"
    assert put.account.subscription is None
    assert world.accounts.customers["acme"].billing_customer == "cus_1"
    world.billing.is_down = False
    assert world.put(billing_customer="cus_1").account.subscription is not None


def test_a_subscription_that_is_known_is_not_asked_for_again(world: World) -> None:
    world.put(billing_customer="cus_1")
    world.put(billing_customer="cus_1", email="a@example.com")
    assert world.billing.asked == ["cus_1"]


def test_a_customer_without_an_id_at_the_billing_layer_asks_nothing(world: World) -> None:
    assert world.put().account.subscription is None
    assert world.billing.asked == []
    assert world.sync("acme", NOW) is None


def test_another_billing_customer_loses_the_old_ones_subscription(world: World) -> None:
    world.put(billing_customer="cus_1")
    assert world.put(billing_customer="cus_without").account.subscription is None
    assert world.put().account.subscription is None


def test_users_left_out_stay_and_an_empty_list_removes_them(world: World) -> None:
    world.put(users=[{"id": "u_2"}, {"id": "u_1", "name": "Ada", "role": "admin"}])
    kept = world.put(email="a@example.com").account.users
    assert [(user.id, user.role) for user in kept] == [("u_1", Role.ADMIN), ("u_2", Role.MEMBER)]
    assert world.put(users=[]).account.users == ()


def test_a_plan_that_is_not_there_is_refused_and_nothing_is_written(world: World) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        world.put(plan="gold", users=[{"id": "u_1"}])
    assert refused.value.code == "unknown_plan"
    assert not world.accounts.customers
    assert not world.accounts.users


def test_two_customers_are_never_billed_as_one(world: World) -> None:
    world.put("acme", billing_customer="cus_1")
    with pytest.raises(InvalidRequestError) as refused:
        world.put("other", billing_customer="cus_1")
    assert (refused.value.code, refused.value.status) == ("billing_customer_taken", 409)
    assert "other" not in world.accounts.customers
    world.put("acme")
    assert world.put("other", billing_customer="cus_1").account.subscription is not None


def test_what_the_billing_layer_bills_is_the_plan(world: World) -> None:
    put = world.put(billing_customer="cus_1")
    assert put.account.billed_plan == "pro"
    world.billing.by_customer["cus_1"] = replace(SUBSCRIPTION, plan="team")
    world.sync("acme", NOW + timedelta(seconds=1))
    assert world.manage.get("acme").billed_plan == "team"
    world.billing.by_customer["cus_1"] = replace(SUBSCRIPTION, plan=None)
    world.sync("acme", NOW + timedelta(seconds=2))
    assert world.manage.get("acme").billed_plan == "pro"


def test_periods_that_were_current_are_remembered_over_syncs(world: World) -> None:
    world.put(billing_customer="cus_1")
    restarted = datetime(2026, 11, 20, 8, 0, 5, tzinfo=UTC)
    world.billing.by_customer["cus_1"] = replace(
        SUBSCRIPTION,
        anchor=restarted,
        current=Period(restarted, datetime(2026, 12, 20, 8, 0, 5, tzinfo=UTC)),
    )
    known = world.sync("acme", NOW + timedelta(hours=1))
    assert known is not None
    assert known.past == (Period(START, restarted),)


def test_a_subscription_that_is_gone_is_forgotten(world: World) -> None:
    world.put(billing_customer="cus_1")
    world.billing.by_customer.clear()
    assert world.sync("acme", NOW) is None
    assert world.manage.get("acme").subscription is None


def test_a_sync_that_was_overtaken_asks_again(world: World) -> None:
    world.put(billing_customer="cus_1")
    later = replace(SUBSCRIPTION, status="past_due")

    def overtake() -> None:
        world.billing.by_customer["cus_1"] = later
        world.accounts.subscriptions["acme"] = replace(later, synced_at=NOW + timedelta(seconds=9))

    world.accounts.before_replace = overtake
    known = world.sync("acme", NOW)
    assert known is not None
    assert known.status == "past_due"
    assert len(world.billing.asked) == 3


def test_a_sync_during_a_change_of_the_billing_customer_takes_the_new_one(world: World) -> None:
    world.put(billing_customer="cus_1")
    world.billing.by_customer["cus_2"] = replace(SUBSCRIPTION, id="sub_2")

    def change() -> None:
        told = {"name": "Acme", "plan": "pro", "email": None, "billing_customer": "cus_2"}
        world.accounts.put_customer("acme", told, NOW)

    world.accounts.before_replace = change
    known = world.sync("acme", NOW)
    assert known is not None
    assert known.id == "sub_2"


def test_a_record_that_never_holds_still_is_no_answer(world: World) -> None:
    class Restless(FakeAccounts):
        def replace_subscription(self, *_: object) -> None:
            raise SupersededError("moved")

    restless = Restless()
    restless.customers = world.accounts.customers
    world.put(billing_customer="cus_1")
    with pytest.raises(StorageUnavailableError):
        SyncSubscriptions(restless, world.billing, world.plans)("acme", NOW)


def test_a_customer_that_is_not_there_is_not_found(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.manage.get("acme")
    with pytest.raises(NotFoundError):
        world.sync("acme", NOW)


@pytest.mark.parametrize(("count", "limit"), [(0, 3), (1, 3), (3, 3), (4, 3), (10, 3), (10, 10)])
def test_pages_show_every_customer_once_and_end(world: World, count: int, limit: int) -> None:
    ids = sorted(f"c{place}" for place in range(count))
    for each in ids:
        world.put(each)
    seen: list[str] = []
    after, pages = None, 0
    while True:
        page = world.manage.list(limit, after)
        seen += [customer.id for customer in page.customers]
        pages += 1
        after = read_cursor(write_cursor(page.next_after))
        if after is None:
            break
    assert seen == ids
    assert pages == max(1, -(-count // limit))


@pytest.mark.parametrize("told", ["0", "-1", "101", "1e1", "x", "", "01 ", "٣", "1,2", "9" * 40])
def test_a_limit_that_is_none_is_refused(told: str) -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        read_limit(told)


@pytest.mark.parametrize(
    "told",
    ["", "x", "acme", "YWNtZQ==", "Y3VzdG9tZXI6", "Y3VzdG9tZXI6Li4vLi4=", "Y3VzdG9tZXI6w7w=", "ü"],
)
def test_a_cursor_that_we_never_wrote_is_refused(told: str) -> None:
    with pytest.raises(InvalidRequestError, match="cursor"):
        read_cursor(told)


BAD_USERS: Mapping[str, Any] = {
    "not a list": {"id": "u_1"},
    "not objects": ["u_1"],
    "no id": [{"name": "Ada"}],
    "an empty id": [{"id": ""}],
    "a number for an id": [{"id": 7}],
    "a long id": [{"id": "u" * 129}],
    "control characters": [{"id": "u\n1"}],
    "NUL": [{"id": "u\x001"}],
    "an unknown role": [{"id": "u_1", "role": "owner"}],
    "a role in capitals": [{"id": "u_1", "role": "ADMIN"}],
    "a number for a role": [{"id": "u_1", "role": 1}],
    "a list for a role": [{"id": "u_1", "role": ["admin"]}],
    "no email": [{"id": "u_1", "email": "nobody"}],
    "two ats": [{"id": "u_1", "email": "a@b@c"}],
    "a long name": [{"id": "u_1", "name": "n" * 201}],
    "an unknown field": [{"id": "u_1", "admin": True}],
    "the same id twice": [{"id": "u_1"}, {"id": "u_1"}],
    "too many": [{"id": f"u_{place}"} for place in range(MAX_USERS + 1)],
}


@pytest.mark.parametrize("users", BAD_USERS.values(), ids=BAD_USERS.keys())
def test_users_that_cannot_be_are_refused(users: Any) -> None:
    with pytest.raises(ValidationError):
        CustomerInput.model_validate({"name": "Acme", "plan": "pro", "users": users})


def test_as_many_users_as_may_be_are_taken() -> None:
    users = [{"id": f"u_{place}", "role": "admin"} for place in range(MAX_USERS)]
    told = CustomerInput.model_validate({"name": "Acme", "plan": "pro", "users": users})
    assert told.users is not None
    assert len(told.users) == MAX_USERS
