"""The queue of customers whose counts are to be compared with the billing layer's, on SQS FIFO."""

from __future__ import annotations

from pydantic_core import to_json

from meterline.adapters.aws_json_wire import AwsJsonWire


class SqsComparisons:
    """Keeps `meterline.ports.Comparisons`. One group a customer, one message in five minutes."""

    def __init__(self, wire: AwsJsonWire, queue_url: str) -> None:
        self._wire = wire
        self._queue_url = queue_url

    def request(self, customer: str) -> None:
        """Ask for a comparison; SQS drops what is asked again within five minutes."""
        self._wire.call(
            "SendMessage",
            {
                "QueueUrl": self._queue_url,
                "MessageBody": to_json({"customer": customer}).decode(),
                "MessageGroupId": customer,
                "MessageDeduplicationId": customer,
            },
        )
