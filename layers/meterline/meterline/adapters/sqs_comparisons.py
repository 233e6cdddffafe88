"""The queue of customers whose counts are to be compared with the billing layer's, on SQS FIFO."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic_core import to_json

from meterline.adapters.aws_json_wire import AwsJsonWire


class SqsComparisons:
    """Keeps `meterline.ports.Comparisons`. One group a customer, one message in five minutes."""

    def __init__(self, queue_url: str) -> None:
        self._queue_url = queue_url
        self._wire: AwsJsonWire | None = None

    def request(self, customer: str) -> None:
        """Ask for a comparison; SQS drops what is asked again within five minutes."""
        if self._wire is None:
            # A queue's URL begins with its service's own address.
            address = urlsplit(self._queue_url)
            self._wire = AwsJsonWire("sqs", "AmazonSQS", f"{address.scheme}://{address.netloc}")
        self._wire.call(
            "SendMessage",
            {
                "QueueUrl": self._queue_url,
                "MessageBody": to_json({"customer": customer}).decode(),
                "MessageGroupId": customer,
                "MessageDeduplicationId": customer,
            },
        )
