"""Worker: CPU of the whole `project_usage` handler, a delivery of the stream to its last message.

Totals on DynamoDB Local, messages to an SQS of this machine. Environment: TOTALS_TABLE,
EMISSIONS_TABLE, EMISSIONS_QUEUE_URL, PROJECTION_DLQ_URL, STREAM_SHARDS, BENCH_ROUNDS, AWS's own.
"""

from __future__ import annotations

import os
from functools import partial

from tests.bench.measuring import Function, Samples, report
from tests.bench.usage_mix import ONE_CUSTOMER, SAAS, UsageSource, delivery_of
from tests.bench.worker_report import make_items

RECORDS = 1000
"""Of a delivery, as the event source mapping asks for."""


def main() -> None:
    """Measure in interleaved rounds and report medians."""
    rounds = int(os.environ["BENCH_ROUNDS"])
    function = Function("project_usage")
    shapes = {
        f"{mix.name}, {meter}": (UsageSource(mix, seed=3 + place), meter, Samples())
        for place, (mix, meter) in enumerate(
            [(ONE_CUSTOMER, "credits"), (SAAS, "credits"), (SAAS, "tokens")]
        )
    }
    sequence = 1
    log_bytes = 0
    for number in range(1 + rounds):
        for source, meter, samples in shapes.values():
            delivery = delivery_of(make_items(source, RECORDS, meter), sequence)
            sequence += RECORDS
            function.take_log_bytes()
            # The first round warms up: connections, caches, DynamoDB Local itself.
            (samples if number else Samples()).take(partial(function, delivery), RECORDS)
            log_bytes = function.take_log_bytes()
    report(
        {
            "shapes": {name: samples.summary() for name, (_, _, samples) in shapes.items()},
            "records": RECORDS,
            "log_bytes_per_call": log_bytes,
        }
    )


if __name__ == "__main__":
    main()
