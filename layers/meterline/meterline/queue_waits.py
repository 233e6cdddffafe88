"""How long messages wait in a queue, as the function sees that works them off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any


def oldest_wait_s(
    records: Sequence[Mapping[str, Any]], left: Collection[str], now: datetime
) -> float:
    """Seconds since the oldest of a delivery's messages that are `left` in the queue was sent.

    Zero without any. SQS's own age of the oldest message leaves out what was received again and
    again (developer guide, ApproximateAgeOfOldestMessage), which is what waits the longest here.
    """
    sent_ms = [
        int(record["attributes"]["SentTimestamp"])
        for record in records
        if record["messageId"] in left
    ]
    return now.timestamp() - min(sent_ms) / 1000 if sent_ms else 0.0
