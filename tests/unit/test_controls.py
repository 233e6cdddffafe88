"""One test for each control; `test_controls_removed` shows that it fails without the control."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from meterline.domain.invoice_checks import BillingInvoice, HoldReason
from meterline.domain.invoice_spikes import ComparedInvoice, InvoiceLine
from meterline.domain.limits import Limits, MoneyLimit, QuantityLimit
from meterline.domain.notifications import Happening
from meterline.domain.periods import Period, calendar_month
from meterline.services.check_invoice import CheckInvoice
from meterline.services.preview_usage import PreviewRequest, PreviewUsage
from tests.guardrail_fakes import (
    METERS,
    NOW,
    CatalogPlans,
    FakeActionHistory,
    FakeInvoices,
    Guarded,
)

ACME = "acme"


def make_guarded(limits: Limits | None = None) -> Guarded:
    guarded = Guarded()
    guarded.make(ACME, limits)
    return guarded


def watch(guarded: Guarded) -> None:
    guarded.watch_usage([(ACME, "credits")], NOW)


def test_soft_limit_warns_once_and_refuses_nothing() -> None:
    guarded = make_guarded(Limits(warn_at=QuantityLimit(Decimal(100))))
    guarded.use(ACME, "99.999")
    watch(guarded)
    assert guarded.bus.published == []
    guarded.use(ACME, "0.001")
    for _ in range(3):
        watch(guarded)
    [told] = guarded.bus.published
    assert told.happening is Happening.SOFT_LIMIT_CROSSED
    assert told.facts["used"] == "100"
    assert guarded.ask(ACME, "1000").is_allowed


def test_soft_limit_of_who_set_none_is_80_percent_of_what_is_typical() -> None:
    guarded = make_guarded()
    guarded.history.past = 3_000_000
    guarded.use(ACME, "2399.999")
    watch(guarded)
    assert Happening.SOFT_LIMIT_CROSSED not in guarded.guardrails.kinds(ACME)
    guarded.use(ACME, "0.001")
    watch(guarded)
    assert Happening.SOFT_LIMIT_CROSSED in guarded.guardrails.kinds(ACME)


def test_hard_limit_refuses_what_would_pass_it_and_not_a_thousandth_less() -> None:
    guarded = make_guarded(Limits(stop_at=QuantityLimit(Decimal("10.5"))))
    held = guarded.ask(ACME, "10")
    assert held.is_allowed
    refused = guarded.ask(ACME, "0.501")
    assert (refused.is_allowed, refused.code) == (False, "hard_limit")
    assert guarded.ask(ACME, "0.5").is_allowed
    guarded.use(ACME, "9", held.authorization)
    assert not guarded.ask(ACME, "1.001").is_allowed
    assert guarded.ask(ACME, "1").is_allowed


def test_hard_limit_that_was_passed_refuses_what_is_rated_at_nothing() -> None:
    guarded = make_guarded(Limits(stop_at=QuantityLimit(Decimal("10.5"))))
    guarded.use(ACME, "10.5")
    assert guarded.ask(ACME, "0").is_allowed
    guarded.use(ACME, "0.001")
    refused = guarded.ask(ACME, "0")
    assert (refused.is_allowed, refused.code) == (False, "hard_limit")


def test_hard_limit_in_money_stops_before_the_bill_is_higher() -> None:
    # $29 with 1,000 credits, then half a cent each.
    guarded = make_guarded(Limits(stop_at=MoneyLimit(3000, "usd")))
    guarded.use(ACME, "1200")
    assert not guarded.ask(ACME, "1").is_allowed
    assert guarded.ask(ACME, "0.999").is_allowed


def test_kill_switch_leaves_exactly_the_included_quota() -> None:
    guarded = make_guarded(Limits(block_overage=True))
    guarded.use(ACME, "999")
    assert guarded.ask(ACME, "1").is_allowed
    refused = guarded.ask(ACME, "0.001")
    assert (refused.is_allowed, refused.code) == (False, "overage_blocked")


def test_preview_says_what_it_costs_and_that_it_would_be_refused() -> None:
    guarded = make_guarded(Limits(stop_at=QuantityLimit(Decimal(1300))))
    guarded.use(ACME, "900")
    preview_usage = PreviewUsage(
        guarded.guardrails,
        guarded.budgets,
        FakeActionHistory(),
        CatalogPlans(),
        METERS,
        guarded.measure,
    )

    def preview(quantity: str) -> tuple[int, bool, bool]:
        asked = PreviewRequest(ACME, None, lambda _meter: Decimal(quantity))
        found, _ = preview_usage(asked, NOW)
        return found.likely.amount_minor, found.crosses_quota, found.crosses_limit

    assert preview("100") == (0, False, False)
    assert preview("300") == (100, True, False)
    assert preview("400.001") == (150, True, True)


def test_breaker_freezes_at_ten_typical_days_within_an_hour_and_refuses_at_once() -> None:
    guarded = make_guarded()
    guarded.history.days[ACME] = 200_000
    guarded.use(ACME, "1999.999")
    watch(guarded)
    assert guarded.ask(ACME, "1").is_allowed
    guarded.use(ACME, "0.001")
    watch(guarded)
    refused = guarded.ask(ACME, "0.001")
    assert (refused.is_allowed, refused.code) == (False, "customer_frozen")
    [frozen] = [
        each for each in guarded.bus.published if each.happening is Happening.CUSTOMER_FROZEN
    ]
    assert (frozen.facts["used_last_hour"], frozen.facts["typical_day"]) == ("2000", "200")


def make_invoice(name: str, period: Period, credits_minor: int) -> ComparedInvoice:
    lines = [
        InvoiceLine("price_base", "Pro", 2900, period, is_metered=False),
        InvoiceLine("price_use", "Credits", credits_minor, period, is_metered=True),
    ]
    return ComparedInvoice(name, "usd", lines)


def test_invoice_check_tells_and_holds_what_is_over_150_percent() -> None:
    november = calendar_month(NOW)
    october = calendar_month(november.start - timedelta(days=1))
    before = make_invoice("in_1", october, 1100)
    seen = BillingInvoice("in_2", "cus_1", "draft", True, "usd", 6000, (), {})
    guarded = make_guarded()
    for credits_minor, spikes in ((3100, False), (3101, True)):
        invoices = FakeInvoices(make_invoice("in_2", november, credits_minor), before)
        check_invoice = CheckInvoice(invoices, guarded.guardrails, guarded.bus, hold=invoices.hold)
        found = check_invoice(replace(seen, total_minor=2900 + credits_minor), ACME, NOW)
        assert (found is not None) is spikes
        assert invoices.held == ([("in_2", HoldReason.SPIKE)] if spikes else [])
    [told] = guarded.bus.published
    assert told.happening is Happening.INVOICE_SPIKED
    assert "Credits: 11.00 USD → 31.01 USD" in told.facts["lines"]
