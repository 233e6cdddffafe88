"""The emission queue on SQS FIFO, from the side that works it off, and its dead-letter queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from meterline.adapters.partition_keys import partition_key
from meterline.domain.emission import EmissionDue
from meterline.errors import StorageUnavailableError
from meterline.schemas.dues import encode_due

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

_MESSAGES_PER_CALL = 10
"""What ChangeMessageVisibilityBatch takes (SQS API reference)."""


class SqsEmissionInbox:
    """Keeps `meterline.ports.EmissionInbox`. Raises StorageUnavailableError. Groups park from
    threads of their own.

    The client is made at its first use: where nothing is handed back or parked, none is needed.
    """

    def __init__(
        self,
        queue_url: str,
        dead_letter_url: str,
        client: Callable[[], SQSClient] | None = None,
    ) -> None:
        self._queue_url = queue_url
        self._dead_letter_url = dead_letter_url
        self._make_client = client or _make_client
        self._made: SQSClient | None = None
        self._making = Lock()

    def delay(self, receipts: Sequence[str], delay_s: int) -> None:
        """Let the messages be seen again after `delay_s`.

        A receipt that SQS refuses has run out; its message is seen again anyway.
        """
        for start in range(0, len(receipts), _MESSAGES_PER_CALL):
            part = receipts[start : start + _MESSAGES_PER_CALL]
            with _translated():
                self._client.change_message_visibility_batch(
                    QueueUrl=self._queue_url,
                    Entries=[
                        {"Id": str(i), "ReceiptHandle": receipt, "VisibilityTimeout": delay_s}
                        for i, receipt in enumerate(part)
                    ],
                )

    def park(self, due: EmissionDue, *, dedupe: str, code: str, message: str) -> None:
        """Put what is due into the dead-letter queue, in its own group, with its reason."""
        body = encode_due(due, parked_for=code, parked_message=message[:500])
        self._put(body, partition_key(due.customer, due.meter), dedupe)

    def park_unreadable(self, body: str, *, group: str, dedupe: str) -> None:
        """Put a message that nobody can read into the dead-letter queue as it is."""
        self._put(body, group, dedupe)

    def _put(self, body: str, group: str, dedupe: str) -> None:
        with _translated():
            self._client.send_message(
                QueueUrl=self._dead_letter_url,
                MessageBody=body,
                MessageGroupId=group,
                MessageDeduplicationId=sha256(f"{group}\x1f{dedupe}".encode()).hexdigest(),
            )

    @property
    def _client(self) -> SQSClient:
        # Clients may be shared between threads, but two must not be made at once from the default
        # session (boto3's guide, multithreading with clients).
        with self._making:
            if self._made is None:
                self._made = self._make_client()
            return self._made


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StorageUnavailableError(f"SQS: {error}") from error


def _make_client() -> SQSClient:
    # Imported late: most cold starts end without a message to hand back.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=1, read_timeout=5, retries={"mode": "standard", "max_attempts": 4}
    )
    return boto3.client("sqs", config=config)
