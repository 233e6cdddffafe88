"""Ninety days with everything that goes wrong: every invoice is the ledger's, to the cent."""

from __future__ import annotations

import pytest

from tests.faults.ninety_days import describe, simulate


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1])
def test_ninety_days_end_with_every_invoice_equal_to_the_ledger(
    dynamodb_local: str, seed: int
) -> None:
    row = simulate(dynamodb_local, seed, customers=3)
    print(describe(row))
    assert row.wrong == []
    assert row.invoices >= 6
    assert row.faults
    assert row.crashes
