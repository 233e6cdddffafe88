"""The emission queue on SQS FIFO, from the side that fills it: one group per customer and meter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic_core import to_json

from meterline.adapters.dynamodb_wire import back_off_s
from meterline.adapters.partition_keys import partition_key
from meterline.adapters.sqs_wire import SqsWire
from meterline.domain.emission import EmissionDue
from meterline.errors import StorageUnavailableError
from meterline.schemas.dues import encode_due

if TYPE_CHECKING:
    from botocore.session import Session
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef

_MESSAGES_PER_CALL = 10
"""What SendMessageBatch takes (SQS API reference)."""
_MAX_TRIES = 6


class SqsEmissionQueue:
    """Keeps `meterline.ports.EmissionQueue`."""

    def __init__(
        self,
        queue_url: str,
        client: SQSClient | SqsWire | None = None,
        session: Session | None = None,
    ) -> None:
        self._queue_url = queue_url
        self._client = client or SqsWire(queue_url, session)

    def send(self, dues: Sequence[EmissionDue], *, renewal: str = "") -> None:
        """Hand over; returns only when the queue has all of them.

        The same hand-over with the same `renewal` within five minutes is one message: SQS drops
        what repeats a deduplication id. A projection's renewal is its step, a repair's its minute.
        Raises `StorageUnavailableError`.
        """
        for start in range(0, len(dues), _MESSAGES_PER_CALL):
            self._send_part(dues[start : start + _MESSAGES_PER_CALL], renewal)

    def _send_part(self, dues: Sequence[EmissionDue], renewal: str) -> None:
        entries = [_entry(str(place), due, renewal) for place, due in enumerate(dues)]
        why = ""
        for tries in range(1, _MAX_TRIES + 1):
            try:
                answer = self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
            except (BotoCoreError, ClientError) as error:
                raise StorageUnavailableError(f"SQS: {error}") from error
            failed = {told["Id"]: told for told in answer.get("Failed", [])}
            if not failed:
                return
            why = next(iter(failed.values()))["Code"]
            entries = [entry for entry in entries if entry["Id"] in failed]
            time.sleep(back_off_s(tries))
        raise StorageUnavailableError(f"SQS did not take {len(entries)} messages: {why}")


def _entry(place: str, due: EmissionDue, renewal: str) -> SendMessageBatchRequestEntryTypeDef:
    body = encode_due(due)
    return {
        "Id": place,
        "MessageBody": body,
        "MessageGroupId": partition_key(due.customer, due.meter),
        "MessageDeduplicationId": sha256((body + renewal).encode()).hexdigest(),
    }


class SqsDeadLetters:
    """A dead-letter queue that the function fills itself, with the reason as an attribute."""

    def __init__(self, queue_url: str, client: SQSClient | None = None) -> None:
        self._queue_url = queue_url
        self._client: SQSClient | SqsWire | None = client

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        """Keep it; raises `StorageUnavailableError`."""
        if self._client is None:
            self._client = SqsWire(self._queue_url)
        try:
            self._client.send_message(
                QueueUrl=self._queue_url,
                MessageBody=to_json(body).decode(),
                MessageAttributes={"reason": {"DataType": "String", "StringValue": reason[:1000]}},
            )
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailableError(f"SQS: {error}") from error
