"""The queue of customers whose counts are to be compared with the billing layer's, on SQS FIFO."""

from __future__ import annotations

from pydantic_core import to_json

from meterline.adapters.sqs_wire import SqsWire


class SqsComparisons:
    """Keeps `meterline.ports.Comparisons`. One group a customer, one message in five minutes."""

    def __init__(self, queue_url: str) -> None:
        self._queue_url = queue_url
        self._wire: SqsWire | None = None

    def request(self, customer: str) -> None:
        """Ask for a comparison; SQS drops what is asked again within five minutes."""
        if self._wire is None:
            self._wire = SqsWire(self._queue_url, timeout_s=2.0)
        self._wire.send_message(
            QueueUrl=self._queue_url,
            MessageBody=to_json({"customer": customer}).decode(),
            MessageGroupId=customer,
            MessageDeduplicationId=customer,
        )
