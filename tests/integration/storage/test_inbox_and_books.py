"""The inbox and the books, their contract on every store."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from meterline.adapters.dynamodb_books import (
    DynamoFindings,
    DynamoInvoiceChecks,
    DynamoRunCursor,
)
from meterline.adapters.dynamodb_inbox import DynamoInbox
from meterline.domain.invoice_checks import CheckedSpan, CheckState, InvoiceCheck
from meterline.domain.periods import Period
from meterline.domain.reconciliation import Cause, Difference, Explanation, HourKey
from meterline.domain.webhooks import Notice
from meterline.errors import SupersededError
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
_serial = itertools.count()


def test_an_event_is_known_once_it_is_queued_and_done_once_it_is_handled(store: Store) -> None:
    inbox = DynamoInbox(store.wire(), store.tables.inbox)
    notice = Notice(f"evt_{next(_serial)}", "invoice.created", "in_1", "cus_1", 7)
    assert not inbox.note(notice, NOW)
    assert not inbox.note(notice, NOW), "written down, but nobody has queued it"
    inbox.mark_queued(notice.id, NOW)
    assert inbox.note(notice, NOW)
    assert not inbox.is_done(notice.id)
    inbox.mark_done(notice.id, NOW)
    assert inbox.is_done(notice.id)


def test_the_cursor_never_moves_back(store: Store) -> None:
    inbox = DynamoInbox(store.wire(), store.tables.inbox)
    for to_s, expected_s in ((100, 100), (300, 300), (200, 300)):
        inbox.move_cursor(to_s)
        assert inbox.cursor() == expected_s


def make_check(invoice: str) -> InvoiceCheck:
    period = Period(NOW.replace(day=1), NOW)
    span = CheckedSpan("credits", period, 10**20, 7, 3, "d" * 64, "pro", 2, 1)
    return InvoiceCheck(invoice, "acme", "usd", CheckState.HELD, (span,), NOW, held_since=NOW)


def test_a_check_is_read_back_as_it_was_written(store: Store) -> None:
    checks = DynamoInvoiceChecks(store.wire(), store.tables.books)
    saved = checks.save(make_check(f"in_{next(_serial)}"))
    assert checks.get(saved.invoice) == saved
    assert saved in list(checks.list_open())


def test_a_stale_check_is_not_written_over_a_newer_one(store: Store) -> None:
    checks = DynamoInvoiceChecks(store.wire(), store.tables.books)
    check = make_check(f"in_{next(_serial)}")
    saved = checks.save(check)
    with pytest.raises(SupersededError):
        checks.save(check)
    assert checks.get(check.invoice) == saved


def test_a_finding_stays_open_until_it_is_closed(store: Store) -> None:
    findings = DynamoFindings(store.wire(), store.tables.books)
    customer = f"customer-{next(_serial)}"
    key = HourKey(customer, "credits", NOW)
    difference = Difference(key, 10**20, 5, (Explanation(Cause.LATE, 4, 2, "old", ("ml_1",)),))
    findings.put(difference, NOW)
    assert findings.open_hours(customer, "credits") == {NOW}
    assert [each for each in findings.list_open() if each.key == key] == [difference]
    findings.close(key, NOW)
    assert not findings.open_hours(customer, "credits")


def test_a_run_goes_on_where_the_last_one_stopped(store: Store) -> None:
    cursor = DynamoRunCursor(store.wire(), store.tables.books, f"run-{next(_serial)}")
    assert cursor.read() is None
    cursor.write("acme")
    assert cursor.read() == "acme"
    cursor.write(None)
    assert cursor.read() is None
