"""Who operates: their name, their reason, and the trail that keeps both."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from infra.cli.stack_access import Stack
from meterline.adapters.dynamodb_books import AuditEntry, DynamoAuditTrail
from meterline.adapters.dynamodb_wire import DynamoWire


def actor_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Who does it: for the trail."""
    return click.option(
        "--actor", default=getpass.getuser, show_default="your login", help="Who does it."
    )(function)


def reason_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that changes something."""
    return actor_option(click.option("--reason", required=True, help="Why; it is kept.")(function))


class Trail:
    """Writes down what is about to be done, and then what came of it."""

    def __init__(self, stack: Stack, wire: DynamoWire, actor: str, reason: str) -> None:
        self._trail = DynamoAuditTrail(wire, stack.table("Books"))
        self._actor = actor
        self._reason = reason

    def record(self, action: str, subject: str, outcome: str) -> None:
        """One entry. Written before and after, so that what was begun shows too."""
        now = datetime.now(UTC)
        entry = AuditEntry(now, self._actor, action, subject, self._reason, outcome)
        self._trail.record(entry)
