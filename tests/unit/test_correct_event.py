"""Corrections: what is not known to be taken back is not said to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import StorageUnavailableError
from meterline.ports import Recorded
from meterline.services.correct_event import AlreadyCorrectedError, CorrectEvent

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = EventKey("acme", "backend/reports", "req_8f2")


class AnsweringLedger:
    """A ledger with one event, which answers each write with the next outcome."""

    def __init__(self, *outcomes: Recorded) -> None:
        self._outcomes = iter(outcomes)
        self.written: list[LedgerEntry] = []

    def find(self, key: EventKey) -> LedgerEntry | None:
        return LedgerEntry(key, NOW, "credits", Decimal("1.5"), b"0" * 16, NOW)

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        self.written += entries
        return [next(self._outcomes) for _ in entries]

    def list_digests(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        return {}


def test_a_correction_without_an_answer_is_to_be_tried_again_as_the_same_entry() -> None:
    ledger = AnsweringLedger(Recorded.UNDECIDED, Recorded.ACCEPTED, Recorded.DUPLICATE)
    correct = CorrectEvent(ledger, ledger)
    with pytest.raises(StorageUnavailableError):
        correct(KEY, NOW)
    assert correct(KEY, NOW).quantity == Decimal("-1.5")
    with pytest.raises(AlreadyCorrectedError):
        correct(KEY, NOW)
    assert len({(entry.key, entry.digest) for entry in ledger.written}) == 1
