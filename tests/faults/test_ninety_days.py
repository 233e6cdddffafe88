"""Ninety days with everything that goes wrong: every invoice is the ledger's, to the cent."""

from __future__ import annotations

from tests.faults.ninety_days import simulate
from tests.faults.ninety_days_audit import Row
from tests.faults.simulated_service import prepare_ground


def test_ninety_days_end_with_every_invoice_equal_to_the_ledger(dynamodb_local: str) -> None:
    with prepare_ground(dynamodb_local) as ground:
        row = simulate(ground, seed=1, customers=3)
    print(f"{Row.headings()}\n{row}")
    assert row.wrong == []
    assert row.renewals >= 8
    assert row.billed >= 60
    assert row.faults, "DynamoDB and SQS failed"
    assert row.crashes
    assert row.plan_changes
    assert row.repeated
