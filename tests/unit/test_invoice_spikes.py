"""Invoice spikes: over 150% of the last comparable invoice, and only like against like."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from meterline.domain.invoice_spikes import ComparedInvoice, InvoiceLine, find_spike
from meterline.domain.periods import Period

OCTOBER = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
YEAR = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2027, 11, 1, tzinfo=UTC))


def base(amount: int = 2900, period: Period = NOVEMBER, **said: bool) -> InvoiceLine:
    return InvoiceLine("price_base", "Pro", amount, period, is_metered=False, **said)


def usage(
    amount: int, period: Period = NOVEMBER, *, price: str = "price_use", quantity: int = 0
) -> InvoiceLine:
    return InvoiceLine(price, "Credits", amount, period, is_metered=True, quantity=quantity)


def invoice(*lines: InvoiceLine, currency: str = "usd") -> ComparedInvoice:
    return ComparedInvoice("in_1", currency, lines)


BEFORE = invoice(base(period=OCTOBER), usage(1100, OCTOBER))


def test_150_percent_is_no_spike_and_a_cent_more_is_one() -> None:
    assert find_spike(invoice(base(), usage(3100)), BEFORE) is None
    spike = find_spike(invoice(base(), usage(3101)), BEFORE)
    assert spike is not None
    assert (spike.before, spike.now, spike.percent) == (4000, 6001, 150)
    [grown] = spike.grown
    assert (grown.description, grown.before, grown.now) == ("Credits", 1100, 3101)


def test_a_first_invoice_has_nothing_to_be_held_against() -> None:
    assert find_spike(invoice(base(), usage(10**6)), None) is None


@pytest.mark.parametrize(
    "line",
    [
        base(100_000, is_proration=True),
        base(100_000, is_recurring=False),
        base(100_000, YEAR),
    ],
    ids=["a proration", "a one-off item", "an annual fee"],
)
def test_what_does_not_come_every_month_is_not_compared(line: InvoiceLine) -> None:
    assert find_spike(invoice(base(), usage(1100), line), BEFORE) is None
    # Nor does it hide a spike when it was on the invoice before.
    before = invoice(*BEFORE.lines, line)
    assert find_spike(invoice(base(), usage(9000)), before) is not None


def test_a_short_period_before_is_scaled_by_its_days() -> None:
    ten_days = Period(OCTOBER.end - timedelta(days=10), OCTOBER.end)
    before = invoice(base(period=OCTOBER), usage(1000, ten_days))
    assert find_spike(invoice(base(), usage(5900)), before) is None
    assert find_spike(invoice(base(), usage(5951)), before) is not None


def test_after_a_change_of_prices_quantities_are_compared() -> None:
    before = invoice(base(period=OCTOBER), usage(1000, OCTOBER, price="old", quantity=1_000_000))
    dearer = invoice(base(9900), usage(9000, price="new", quantity=1_400_000))
    assert find_spike(dearer, before) is None
    runaway = invoice(base(9900), usage(0, price="new", quantity=1_600_000))
    spike = find_spike(runaway, before)
    assert spike is not None
    assert not spike.is_in_money


def test_another_currency_or_nothing_before_is_not_compared() -> None:
    assert find_spike(invoice(usage(10**6), currency="eur"), BEFORE) is None
    assert find_spike(invoice(usage(10**6)), invoice(usage(0, OCTOBER))) is None


def test_tiers_of_one_price_are_one_sum() -> None:
    draft = invoice(base(), usage(0), usage(1600), usage(1600))
    spike = find_spike(draft, BEFORE)
    assert spike is not None
    assert [line.now for line in spike.grown] == [3200]
