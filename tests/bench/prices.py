"""What a million events cost at list prices, item by item.

Prices are those of us-east-1, on demand: https://aws.amazon.com/dynamodb/pricing/on-demand/,
https://aws.amazon.com/lambda/pricing/, https://aws.amazon.com/sqs/pricing/,
https://aws.amazon.com/api-gateway/pricing/, https://aws.amazon.com/cloudwatch/pricing/.
Left out of the totals is what is kept (gigabyte-months, which have a row of their own for the
ledger), authorizations (a row of their own: an app may do without), what does not depend on the
number of events (metrics, alarms, schedules, idle polling), data sent out of the region, and
Stripe's own fees.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

MILLION = Decimal(1_000_000)
WRITE_UNIT = Decimal("0.625") / MILLION
READ_UNIT = Decimal("0.125") / MILLION
HTTP_CALL = Decimal("1.00") / MILLION
FIFO_REQUEST = Decimal("0.50") / MILLION
INVOCATION = Decimal("0.20") / MILLION
GB_SECOND = Decimal("0.0000133334")
LOG_BYTE = Decimal("0.50") / (1024**3)

STORED_GB_MONTH = Decimal("0.25")
RECOVERY_GB_MONTH = Decimal("0.20")
"""Continuous backups, for point-in-time recovery; indexes are not in them."""
ITEM_OVERHEAD_BYTES = 100
"""Of every item, in the table and in each index (DynamoDB developer guide, item sizes)."""
VCPU_MB = 1769
"""Memory with which a function gets one vCPU (Lambda developer guide)."""
STORAGE_LATENCY_MS = 6
"""Assumed: one call of DynamoDB or SQS inside the region."""
TRANSACTION_LATENCY_MS = 25
"""Assumed: a transaction of up to 100 items."""
BILLING_LATENCY_MS = 150
"""Assumed: one call of Stripe."""
PLATFORM_LOG_BYTES = 330
"""START, END and REPORT lines of an invocation."""
ACCESS_LOG_BYTES = 330
"""The line of API Gateway's access log, as template.yaml formats it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one event takes, on average."""

    calls: float
    """HTTP calls and invocations of report_usage."""
    report_ms: float
    """Duration of report_usage."""
    report_memory_mb: int
    ledger_write_units: float
    deliveries: float
    project_ms: float
    project_memory_mb: int
    projection_write_units: float
    projection_read_units: float
    queue_requests: float
    """Sending, receiving and deleting."""
    emit_invocations: float
    emit_ms: float
    emit_memory_mb: int
    emission_write_units: float
    emission_read_units: float
    log_bytes: float


def duration_ms(cpu_ms: float, memory_mb: int, waiting_ms: float) -> float:
    """How long a function takes whose CPU is in proportion to its memory, up to one vCPU."""
    return cpu_ms / min(1.0, memory_mb / VCPU_MB) + waiting_ms


def _exact(number: float) -> Decimal:
    return Decimal(str(number))


def _function(invocations: float, length_ms: float, memory_mb: int) -> Decimal:
    gb_seconds = _exact(length_ms) / 1000 * memory_mb / 1024
    return _exact(invocations) * INVOCATION + gb_seconds * GB_SECOND


def itemise(usage: Usage) -> dict[str, Decimal]:
    """Dollars per million events, by item."""
    each = {
        "HTTP API calls": _exact(usage.calls) * HTTP_CALL,
        "report_usage": _function(usage.calls, usage.report_ms, usage.report_memory_mb),
        "ledger write units": _exact(usage.ledger_write_units) * WRITE_UNIT,
        "project_usage": _function(usage.deliveries, usage.project_ms, usage.project_memory_mb),
        "totals and batches": _exact(usage.projection_write_units) * WRITE_UNIT
        + _exact(usage.projection_read_units) * READ_UNIT,
        "emission queue": _exact(usage.queue_requests) * FIFO_REQUEST,
        "emit_usage": _function(usage.emit_invocations, usage.emit_ms, usage.emit_memory_mb),
        "emission states": _exact(usage.emission_write_units) * WRITE_UNIT
        + _exact(usage.emission_read_units) * READ_UNIT,
        "logs": _exact(usage.log_bytes) * LOG_BYTE,
    }
    return {name: dollars * MILLION for name, dollars in each.items()}


def price_of_ledger(item_bytes: float) -> Decimal:
    """Dollars a month for a million events of that size: in the table, its backups and the index,
    which projects all of them."""
    gigabytes = _exact(item_bytes + ITEM_OVERHEAD_BYTES) * MILLION / 10**9
    return gigabytes * (2 * STORED_GB_MONTH + RECOVERY_GB_MONTH)


def price_of_authorizations(
    reads: float, writes: float, length_ms: float, memory_mb: int
) -> Decimal:
    """Dollars for a million calls of `POST /v1/authorizations`."""
    each = (
        HTTP_CALL
        + _function(1, length_ms, memory_mb)
        + _exact(reads) * READ_UNIT
        + _exact(writes) * WRITE_UNIT
    )
    return each * MILLION
