"""Comparing our count with the billing layer's, and what is remembered of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meterline.catalog import load_meters
from meterline.domain.meters import Meter
from meterline.domain.overviews import BillingFacts, Comparison, PastInvoice
from meterline.domain.periods import Period
from meterline.services.compare_usage import CompareUsage
from tests.dashboard_fakes import FakeBilling, FakeOverviews, FakePlans, make_subscription

START = datetime(2026, 11, 3, 9, 23, 41, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 14, 3, 10, tzinfo=UTC)


class Measured:
    """Our count, and which spans were measured."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.spans: list[Period] = []

    def __call__(self, customer: str, meter: Meter, period: Period, now: datetime) -> int:
        self.spans.append(period)
        return self.count


def compare(
    ours: int, theirs: int, start: datetime = START
) -> tuple[CompareUsage, Measured, FakeBilling, FakeOverviews]:
    overviews = FakeOverviews()
    subscription = make_subscription(start, start + timedelta(days=30))
    overviews.add("acme", subscription=subscription, billing_customer="cus_1")
    invoice = PastInvoice("in_1", "A-1", "paid", "usd", 2900, START, None)
    measured, billing = Measured(ours), FakeBilling(theirs, [invoice] * 20)
    service = CompareUsage(overviews, measured, billing, billing, FakePlans(), load_meters())
    return service, measured, billing, overviews


def test_both_counts_are_of_the_same_minutes_and_of_hours_that_have_settled() -> None:
    service, measured, billing, overviews = compare(1000, 1000)
    facts = service("acme", NOW)
    # 14:00 ended three minutes ago: what was used then may still be on its way.
    begin, until = START.replace(second=0), NOW.replace(hour=13, minute=0, second=0)
    assert measured.spans == [Period(begin, until)]
    assert billing.asked == [("cus_1", "meterline_credits", begin, until)]
    assert facts is not None
    assert overviews.kept["acme"].facts == facts
    assert len(facts.invoices) == 12


@pytest.mark.parametrize(
    ("ours", "theirs", "diverges"),
    [
        (0, 0, False),
        (1000, 1000, False),
        (1000, 990, False),
        (1000, 989, True),
        (989, 1000, True),
        (0, 1, True),
        (1, 0, True),
        (10**15, 10**15 - 10**13, False),
        (10**15, 10**15 - 10**13 - 1, True),
        (-1000, -990, False),
        (-5, 5, True),
    ],
)
def test_more_than_one_percent_of_the_larger_count_is_a_divergence(
    ours: int, theirs: int, diverges: bool
) -> None:
    told = Comparison("credits", START, NOW, ours, theirs, NOW)
    assert told.diverges is diverges


def test_a_period_that_has_just_begun_has_nothing_to_compare() -> None:
    service, measured, billing, _ = compare(5, 0, start=NOW - timedelta(minutes=40))
    facts = service("acme", NOW)
    assert facts is not None
    assert facts.comparison is None
    assert facts.invoices
    assert (measured.spans, billing.asked) == ([], [])


def test_nobody_is_asked_about_a_customer_without_a_billing_account() -> None:
    service, _, billing, overviews = compare(5, 5)
    overviews.add("birch")
    assert service("birch", NOW) is None
    assert service("nobody", NOW) is None
    assert billing.asked == []


def test_an_answer_to_a_later_question_stays() -> None:
    service, _, _, overviews = compare(5, 5)
    later = BillingFacts(NOW + timedelta(minutes=1), None, ())
    overviews.put_facts("acme", later)
    assert service("acme", NOW) is None
    assert overviews.kept["acme"].facts == later


def test_facts_are_due_after_five_minutes_and_with_every_period() -> None:
    facts = BillingFacts(NOW, None, ())
    period = Period(START, START + timedelta(days=30))
    assert not facts.is_due(NOW + timedelta(seconds=299), period)
    assert facts.is_due(NOW + timedelta(seconds=300), period)
    begun = Period(NOW.replace(microsecond=0) + timedelta(seconds=1), START + timedelta(days=60))
    assert facts.is_due(NOW + timedelta(seconds=2), begun)
