"""The books of one world: reconciliation on its real storage and its Stripe."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import ValidationError

from meterline.adapters.dynamodb_books import DynamoDroppedUsages, DynamoFindings
from meterline.adapters.dynamodb_emissions import DynamoEmissions
from meterline.adapters.dynamodb_sending_records import DynamoCountedHours, DynamoSendingRecords
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_usage import StripeUsage
from meterline.domain.emission import DeadLetters, RefusalCode
from meterline.domain.measuring import floor_hour
from meterline.domain.reconciliation import GRACE, Difference
from meterline.schemas.emission import decode_due, read_reason
from meterline.services.reconcile_usage import MeterBooks, ReconcileUsage
from tests.faults.whole_path import METERS, FifoQueue, World


class ParkedInMemory:
    """What lies in a world's dead-letter queue."""

    def __init__(self, queue: FifoQueue) -> None:
        self._queue = queue

    def parked(self) -> DeadLetters:
        """What is there."""
        seen, defective = set(), set()
        for message in self._queue.messages:
            try:
                due, _ = decode_due(message.body)
            except ValidationError:
                continue
            seen.add(due)
            if read_reason(message.body)[0] == RefusalCode.DEFECT:
                defective.add(due)
        return DeadLetters(frozenset(seen), frozenset(defective))


class Auditor:
    """Reconciles one world's customer, as the hourly function would."""

    def __init__(self, world: World) -> None:
        self.world = world
        store, wire = world.around.store, world.around.wire
        self.dropped = DynamoDroppedUsages(wire, store.tables.books)
        self.findings = DynamoFindings(wire, store.tables.books)
        self.billed = StripeUsage(
            StripeAccess(lambda: world.around.local.key, api_base=world.around.local.url)
        )
        self.records = DynamoSendingRecords(wire, store.tables.emissions)
        self.emissions = DynamoEmissions(wire, store.tables.emissions)
        sqs = world._sqs()
        self.reconcile = ReconcileUsage(
            DynamoCountedHours(wire, store.tables.totals),
            self.billed,
            store.ledger(wire),
            self.records,
            self.dropped,
            ParkedInMemory(world.dead),
            self.findings,
            self.emissions,
            SqsEmissionQueue("queue", sqs),
            SqsEmissionInbox("queue", "dead", lambda: sqs),
            world.recounter(),
        )

    def look(
        self, meter: str = "credits", *, repair: bool = True, days: int = 9, closely: bool = False
    ) -> MeterBooks:
        """One run over the last `days`, as of the world's time."""
        now = self.world.clock.now()
        end = floor_hour(now - GRACE)
        assert self.world.billing_customer is not None
        unknown = self.reconcile.list_unknown()
        return self.reconcile(
            self.world.customer,
            self.world.billing_customer,
            METERS[meter],
            (end - timedelta(days=days), end),
            now,
            repair=repair,
            closely=closely,
            unknown=unknown.get((self.world.customer, meter), ()),
        )

    def open_findings(self) -> list[Difference]:
        """What is on record for this world's customer."""
        return [
            each for each in self.findings.list_open() if each.key.customer == self.world.customer
        ]

    def billed_total(self, start: datetime, meter: str = "credits") -> int:
        """What Stripe counts from `start` to now."""
        assert self.world.billing_customer is not None
        end = floor_hour(self.world.clock.now()) + timedelta(hours=2)
        return self.billed.total(self.world.billing_customer, METERS[meter], floor_hour(start), end)
