"""What a dashboard's numbers are made of, without any storage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.catalog import load_meters
from meterline.domain.customers import Role
from meterline.domain.limits import Limits
from meterline.domain.overviews import BillingFacts
from meterline.domain.usage import LedgerEntry
from meterline.errors import ForbiddenError, NotFoundError
from meterline.schemas.usage import write_report
from meterline.services.show_usage import ShowUsage, UsageReport
from tests.dashboard_fakes import (
    ADMIN,
    MEMBER,
    FakeComparisons,
    FakeOverviews,
    FakePlans,
    FakeUsage,
    make_entry,
    make_subscription,
)

START = datetime(2026, 11, 3, 9, 23, 41, tzinfo=UTC)
END = datetime(2026, 12, 3, 9, 23, 41, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 14, 3, 10, tzinfo=UTC)


class World:
    """A dashboard over fakes."""

    def __init__(self, entries: list[LedgerEntry], **told: object) -> None:
        self.overviews = FakeOverviews()
        self.usage = FakeUsage(entries)
        self.comparisons = FakeComparisons()
        made: dict[str, object] = {"subscription": make_subscription(START, END)}
        self.overviews.add("acme", **{**made, **told})  # type: ignore[arg-type]
        self.show = ShowUsage(
            self.overviews,
            self.usage,
            self.usage,
            FakePlans(),
            load_meters(),
            self.comparisons,
        )

    def look(self, now: datetime = NOW, member: str | None = None) -> UsageReport:
        overview = self.overviews.load("acme")
        assert overview is not None
        return self.show.show(overview, now, member=member)


def test_an_unknown_customer_has_no_dashboard() -> None:
    with pytest.raises(NotFoundError):
        World([]).show("nobody", NOW)


def test_usage_before_the_period_began_is_not_in_it_though_it_is_in_the_same_hour() -> None:
    entries = [
        make_entry(START - timedelta(hours=3), "100", action="old"),
        make_entry(START - timedelta(seconds=1), "10", action="old"),
        make_entry(START, "1", action="new"),
        make_entry(START + timedelta(minutes=1), "2", action="new", user="u_2"),
        make_entry(NOW - timedelta(hours=1), "4"),
    ]
    report = World(entries).look()
    assert report.used == Decimal(7)
    assert report.events == 3
    assert {share.name: share.quantity for share in report.actions} == {"new": 3, "report": 4}
    assert {share.name: share.quantity for share in report.users} == {"u_1": 5, "u_2": 2}
    # The chart is of days, and the day held all of it.
    assert {day.day.isoformat(): day.quantity for day in report.days}["2026-11-03"] == 113


def test_what_lies_before_the_period_is_read_from_the_ledger_once() -> None:
    world = World([make_entry(START - timedelta(hours=1)), make_entry(START)])
    world.look()
    read = world.usage.read_from_ledger
    assert read == 1
    world.look(NOW + timedelta(days=1))
    assert world.usage.read_from_ledger == read


def test_an_event_that_comes_late_for_the_time_before_the_period_is_seen() -> None:
    world = World([make_entry(START - timedelta(hours=1)), make_entry(START)])
    world.look()
    world.usage.entries.append(make_entry(START - timedelta(hours=2), "50"))
    assert world.look().used == Decimal(1)


def test_in_the_periods_first_hour_an_edge_is_made_anew_once_a_minute() -> None:
    world = World([make_entry(START - timedelta(minutes=5)), make_entry(START)])
    soon = START + timedelta(minutes=2)
    world.look(soon)
    world.usage.entries.append(make_entry(START + timedelta(minutes=1), "3"))
    assert world.look(soon + timedelta(seconds=30)).used == Decimal(4)
    assert world.usage.read_from_ledger == 1
    assert world.look(soon + timedelta(seconds=61)).used == Decimal(4)
    assert world.usage.read_from_ledger == 2


def test_an_event_dated_behind_the_periods_end_is_not_in_it() -> None:
    now = END - timedelta(minutes=2)
    entries = [make_entry(END - timedelta(minutes=3), "1"), make_entry(END, "8")]
    assert World(entries).look(now).used == Decimal(1)
    assert World(entries).look(END + timedelta(minutes=1)).used == Decimal(8)


def test_without_a_subscription_the_calendar_month_counts() -> None:
    report = World(
        [make_entry(datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)), make_entry(NOW)],
        subscription=None,
    ).look()
    assert report.period.start == datetime(2026, 11, 1, tzinfo=UTC)
    assert report.used == 1


def test_overage_costs_what_the_plan_says() -> None:
    report = World([make_entry(NOW - timedelta(days=1), "1300.001")]).look()
    assert report.remaining == 0
    assert report.overage == Decimal("300.001")
    assert report.cost is not None
    assert (report.cost.overage_minor, report.cost.total_minor) == (150, 3050)


def test_usage_of_a_trial_costs_nothing() -> None:
    trial = make_subscription(START, END, trial_start=START, trial_end=END)
    report = World([make_entry(NOW - timedelta(days=1), "5000")], subscription=trial).look()
    assert report.is_free
    assert report.cost is not None
    assert report.cost.total_minor == 0, "neither usage nor the base fee"


def test_without_a_metered_price_only_the_base_fee_is_charged() -> None:
    flat = make_subscription(START, END, metered_item=None, meter=None)
    report = World([make_entry(NOW - timedelta(days=1), "5000")], subscription=flat).look()
    assert report.is_free
    assert report.cost is not None
    assert (report.cost.base_fee_minor, report.cost.total_minor) == (2900, 2900)


def test_usage_before_the_metered_item_came_is_not_billed_and_not_shown() -> None:
    since = NOW - timedelta(days=2)
    late = make_subscription(START, END, metered_since=since)
    entries = [make_entry(since - timedelta(seconds=1), "5"), make_entry(since, "3")]
    assert World(entries, subscription=late).look().used == Decimal(3)


def test_shares_add_up_though_some_events_name_nobody() -> None:
    at = NOW - timedelta(hours=2)
    entries = [
        make_entry(at, "6", user=None, action=None, id="a"),
        make_entry(at, "3", user="u_1", id="b"),
        make_entry(at, "1", user="u_9", action="chat", id="c"),
    ]
    report = World(entries, users=[ADMIN]).look()
    assert [(share.name, share.share) for share in report.users] == [
        ("u_1", Decimal("0.3000")),
        ("u_9", Decimal("0.1000")),
        (None, Decimal("0.6000")),
    ]
    assert report.users[0].user == ADMIN
    assert sum(share.quantity for share in report.actions) == report.used


def test_a_member_gets_the_total_and_their_own_part_and_nothing_else() -> None:
    at = NOW - timedelta(hours=2)
    entries = [
        make_entry(at, "6", user="u_1", action="secret.plan", id="a"),
        make_entry(at, "3", user="u_2", id="b"),
    ]
    report = World(entries, users=[ADMIN, MEMBER]).look(member="u_2")
    assert report.used == Decimal(9)
    assert [(share.name, share.quantity) for share in report.users] == [("u_2", Decimal(3))]
    assert (report.actions, report.cost, report.forecast, report.facts) == ((), None, None, None)
    assert report.days[-1].quantity == Decimal(3)
    assert "secret.plan" not in repr(report)


def test_a_look_asks_for_a_comparison_when_the_last_one_is_old() -> None:
    world = World([], billing_customer="cus_1")
    world.look()
    assert world.comparisons.asked == ["acme"]
    world.overviews.put_facts("acme", BillingFacts(NOW, None, ()))
    world.look(NOW + timedelta(minutes=4))
    assert world.comparisons.asked == ["acme"]
    world.look(NOW + timedelta(minutes=5))
    assert world.comparisons.asked == ["acme", "acme"]


def test_a_queue_that_is_away_costs_the_comparison_and_not_the_page() -> None:
    world = World([], billing_customer="cus_1")
    world.comparisons.is_down = True
    assert world.look().comparison_failure == "the queue is away"


def test_a_customer_that_nobody_bills_is_compared_with_nothing() -> None:
    world = World([])
    world.look()
    assert world.comparisons.asked == []


def test_the_answer_has_plain_decimals() -> None:
    told = write_report(World([make_entry(NOW - timedelta(days=1), "1000.500")]).look())
    assert (told["used"], told["included"], told["overage"]) == ("1000.5", "1000", "0.5")
    assert told["limits"]["stops_at_quantity"] is None
    assert told["cost"]["total"] == {"amount_minor": 2900, "currency": "usd"}


@settings(max_examples=60, deadline=None)
@given(
    offsets_s=st.lists(st.integers(-2 * 86400, 19 * 86400), max_size=40),
    start_s=st.integers(0, 86399),
)
def test_whatever_the_period_cuts_its_total_is_the_sum_of_its_own_events(
    offsets_s: list[int], start_s: int
) -> None:
    start = datetime(2026, 11, 3, tzinfo=UTC) + timedelta(seconds=start_s)
    subscription = make_subscription(start, start + timedelta(days=30))
    entries = [
        make_entry(start + timedelta(seconds=offset), "1.5", id=str(place))
        for place, offset in enumerate(offsets_s)
        if start + timedelta(seconds=offset) < NOW
    ]
    inside = [entry for entry in entries if start <= entry.at < NOW]
    world = World(entries, subscription=subscription)
    for _ in range(2):
        report = world.look()
        assert report.events == len(inside)
        assert report.used == sum((entry.quantity for entry in inside), Decimal(0))
        assert sum((share.events for share in report.actions), 0) == len(inside)


def test_limits_of_the_customer_are_in_its_dashboard() -> None:
    world = World([])
    world.overviews.put_limits("acme", Limits(block_overage=True))
    assert world.look().limits.block_overage


def test_who_is_not_on_the_list_has_the_role_that_was_vouched_for() -> None:
    from meterline.services.show_usage import require_role

    world = World([], users=[ADMIN, MEMBER])
    overview = world.overviews.load("acme")
    assert overview is not None
    account = overview.account
    assert require_role(account, None, None) is Role.ADMIN
    assert require_role(account, "u_2", Role.ADMIN) is Role.MEMBER
    assert require_role(account, "new", Role.ADMIN) is Role.ADMIN
    with pytest.raises(ForbiddenError):
        require_role(account, "gone", None)
