"""The emission queue's dead-letter queue, looked into and emptied by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from meterline.adapters.sqs_wire import SqsWire
from meterline.domain.emission import DeadLetters, EmissionDue, RefusalCode
from meterline.errors import StorageUnavailableError
from meterline.schemas.emission import decode_due, read_reason

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

_LOOK_S = 60
"""For so long a look keeps messages out of other looks; nobody else reads this queue."""
_MAX_MESSAGES = 10


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """One message: what it is about, why it is there, and how to take it out."""

    id: str
    group: str
    body: str
    due: EmissionDue | None
    """None: nobody can read it."""
    code: str
    """Empty: SQS moved it here after too many receives."""
    message: str
    sent_at_ms: int
    receipt: str


class SqsParked:
    """Keeps `meterline.ports.ParkedBatches`. Raises StorageUnavailableError."""

    def __init__(self, queue_url: str, client: SQSClient | SqsWire) -> None:
        self._queue_url = queue_url
        self._client = client

    def parked(self) -> DeadLetters:
        """What is there; of one group no more than ten."""
        with self.look() as messages:
            readable = [(each.due, each.code) for each in messages if each.due is not None]
            return DeadLetters(
                frozenset(due for due, _ in readable),
                frozenset(due for due, code in readable if code == RefusalCode.DEFECT),
            )

    @contextmanager
    def look(self) -> Iterator[list[ParkedMessage]]:
        """What lies there; what is not removed is seen again when the block ends.

        Of one group no more than ten: while they are held, FIFO keeps back what follows them.
        """
        seen: dict[str, ParkedMessage] = {}
        with _translated():
            while batch := self._receive():
                fresh = {each.id: each for each in batch if each.id not in seen}
                seen |= fresh
                if not fresh:
                    break
        try:
            yield list(seen.values())
        finally:
            for each in seen.values():
                self._give_back(each)

    def remove(self, message: ParkedMessage) -> None:
        """Delete it."""
        with _translated():
            self._client.delete_message(QueueUrl=self._queue_url, ReceiptHandle=message.receipt)

    def _give_back(self, message: ParkedMessage) -> None:
        # One that was removed, or whose time is up, is refused: both are as they should be.
        try:
            self._client.change_message_visibility(
                QueueUrl=self._queue_url, ReceiptHandle=message.receipt, VisibilityTimeout=0
            )
        except (ClientError, StorageUnavailableError):
            return

    def _receive(self) -> list[ParkedMessage]:
        answer = self._client.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=_MAX_MESSAGES,
            VisibilityTimeout=_LOOK_S,
            # Without a wait SQS asks some of its servers only (developer guide, short polling).
            WaitTimeSeconds=1,
            MessageSystemAttributeNames=["MessageGroupId", "SentTimestamp"],
        )
        found = []
        for told in answer.get("Messages", []):
            due: EmissionDue | None
            try:
                due, _parked = decode_due(told["Body"])
                code, message = read_reason(told["Body"])
            except ValidationError:
                due, code, message = None, "unreadable", ""
            attributes = told["Attributes"]
            found.append(
                ParkedMessage(
                    told["MessageId"],
                    attributes["MessageGroupId"],
                    told["Body"],
                    due,
                    code,
                    message,
                    int(attributes["SentTimestamp"]),
                    told["ReceiptHandle"],
                )
            )
        return found


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StorageUnavailableError(f"SQS: {error}") from error
