"""Least privilege: no role may do what it did not do while all of these tests ran, or says why."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from infra.local.stack import LOCAL, LocalStack
from tests.e2e.permissions import Permission, read_grants, read_uses, write_table

TABLE = LOCAL / "permissions.txt"
"""Every grant and whether it was used, of the last whole run: `cat .local/permissions.txt`."""

BY_LAMBDA = "Lambda asks for it with the function's role; the emulator does it unasked"
BY_SCHEDULER = "EventBridge Scheduler asks for it; the emulator does it unasked"
FIRST_COME = "whoever comes first measures a period: here it was another function"
HANDED_BACK = "only what Stripe cannot take now is handed back: tests/unit/test_emit_usage.py"
RELINKED = (
    "only a subscription that Stripe knows no more: integration/storage/test_customer_accounts.py"
)
RECOUNT = "only what the stream lost, hours ago: tests/faults/test_recount.py"
REPAIR = "only sends that are too old to be in flight: tests/faults/test_reconciliation.py"
LATE = "whoever comes first settles late usage: tests/faults/test_invoice_day.py"
AFTER_END = "only what Stripe took after a subscription's end: tests/faults/test_after_end.py"
LATE_HOUR = "only a late hour in which a period begins: tests/faults/test_invoice_day.py"
RATES = "a key's calls are written down by many calls in one second: tests/e2e/test_keys.py"
SPIKE = "only a spike that was not told at once: tests/integration/test_invoice_spikes.py"
RARE = [
    ("*", "logs:CreateLogStream", "log-group:*", BY_LAMBDA),
    ("*", "logs:PutLogEvents", "log-group:*", BY_LAMBDA),
    ("*", "sqs:ReceiveMessage", "*Queue", BY_LAMBDA),
    ("*", "sqs:DeleteMessage", "*Queue", BY_LAMBDA),
    ("*", "sqs:GetQueueAttributes", "*Queue", BY_LAMBDA),
    ("ProjectUsageRole", "dynamodb:*", "table/EventsTable/stream/*", BY_LAMBDA),
    ("SchedulerRole", "lambda:InvokeFunction", "function:*", BY_SCHEDULER),
    *(
        (role, action, resource, FIRST_COME)
        for role in ("AuthorizeUsageRole", "PreviewUsageRole", "WatchBreakersRole")
        for action, resource in (
            ("dynamodb:PutItem", "table/TotalsTable"),
            ("dynamodb:Query", "table/EventsTable/index/by_day"),
        )
    ),
    *(
        (role, "dynamodb:UpdateItem", "table/AccountsTable", RATES)
        for role in (
            *("AuthorizeUsageRole", "PreviewUsageRole", "ReportUsageRole"),
            *("ShowUsageRole", "TraceUsageRole"),
        )
    ),
    ("EmitUsageRole", "sqs:ChangeMessageVisibility", "EmissionsQueue", HANDED_BACK),
    ("ApplyStripeEventRole", "dynamodb:DeleteItem", "table/AccountsTable", RELINKED),
    ("ApplyStripeEventRole", "dynamodb:BatchGetItem", "table/EmissionsTable", AFTER_END),
    ("ApplyStripeEventRole", "dynamodb:Query", "table/BooksTable", LATE_HOUR),
    ("ProjectUsageRole", "dynamodb:Query", "table/EmissionsTable", RECOUNT),
    ("ReconcileUsageRole", "dynamodb:BatchGetItem", "table/TotalsTable", RECOUNT),
    ("ReconcileUsageRole", "dynamodb:GetItem", "table/TotalsTable", RECOUNT),
    ("ReconcileUsageRole", "dynamodb:UpdateItem", "table/TotalsTable", RECOUNT),
    ("ReconcileUsageRole", "dynamodb:BatchGetItem", "table/EmissionsTable", REPAIR),
    ("ReconcileUsageRole", "dynamodb:PutItem", "table/EmissionsTable", REPAIR),
    ("ReconcileUsageRole", "dynamodb:UpdateItem", "table/EmissionsTable", REPAIR),
    ("ReconcileUsageRole", "sqs:SendMessage", "Emissions*Queue", REPAIR),
    ("SettleInvoicesRole", "dynamodb:Query", "table/AccountsTable", LATE),
    ("SettleInvoicesRole", "dynamodb:Query", "table/EmissionsTable", LATE),
    ("SettleInvoicesRole", "dynamodb:UpdateItem", "table/EmissionsTable", LATE),
    ("SettleInvoicesRole", "events:PutEvents", "event-bus/*", SPIKE),
    ("SettleInvoicesRole", "dynamodb:PutItem", "table/AccountsTable", SPIKE),
    ("SettleInvoicesRole", "dynamodb:UpdateItem", "table/AccountsTable", SPIKE),
]
"""Role, action and resource as patterns, and why such a grant may stay unused in these tests."""


def find_reasons(grants: frozenset[Permission]) -> dict[Permission, str]:
    """The reason of each grant that has one; no pattern is for nothing."""
    found: dict[Permission, str] = {}
    for role, action, resource, why in RARE:
        matching = {
            grant
            for grant in grants
            if fnmatchcase(grant.role, role)
            and fnmatchcase(grant.action, action)
            and fnmatchcase(grant.resource, resource)
        }
        assert matching, f"there is no grant of {action} on {resource} to {role} any more"
        found |= dict.fromkeys(matching, why)
    return found


def test_no_role_may_do_what_it_never_does(stack: LocalStack, left_out: list[str]) -> None:
    if left_out:
        pytest.skip(f"a part of these tests says nothing about the whole: {left_out[0]} …")
    grants, used = read_grants(stack), read_uses(stack)
    reasons = find_reasons(grants)
    TABLE.write_text(write_table(grants, used, reasons))
    unused = {grant for grant in grants if not any(grant.covers(each) for each in used)}
    assert sorted(unused - set(reasons)) == []
    # A role whose every grant is explained away would be watched by nothing.
    assert {grant.role for grant in grants - unused} >= {
        grant.role for grant in grants - set(reasons)
    }
