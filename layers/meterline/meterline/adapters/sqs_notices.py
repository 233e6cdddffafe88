"""The queue between taking a webhook in and handling it, on SQS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterline.adapters.sqs_wire import SqsWire
from meterline.domain.webhooks import Notice
from meterline.schemas.webhooks import encode_notice

if TYPE_CHECKING:
    from botocore.session import Session


class SqsNotices:
    """Keeps `meterline.ports.NoticeQueue`."""

    def __init__(self, queue_url: str, session: Session | None = None) -> None:
        self._queue_url = queue_url
        self._wire = SqsWire(queue_url, session, timeout_s=3.0)

    def put(self, notice: Notice) -> None:
        """Hand the event on; raises `StorageUnavailableError`."""
        self._wire.send_message(QueueUrl=self._queue_url, MessageBody=encode_notice(notice))
