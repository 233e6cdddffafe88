"""The queue between taking a webhook in and handling it, on SQS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from meterline.domain.webhooks import Notice
from meterline.errors import StorageUnavailableError
from meterline.schemas.webhooks import encode_notice

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


class SqsNotices:
    """Keeps `meterline.ports.NoticeQueue`."""

    def __init__(self, queue_url: str, client: SQSClient | None = None) -> None:
        self._queue_url = queue_url
        self._client: SQSClient = client or boto3.client(
            "sqs",
            config=Config(
                connect_timeout=1, read_timeout=3, retries={"mode": "standard", "max_attempts": 3}
            ),
        )

    def put(self, notice: Notice) -> None:
        """Hand the event on; raises `StorageUnavailableError`."""
        try:
            self._client.send_message(QueueUrl=self._queue_url, MessageBody=encode_notice(notice))
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailableError(f"SQS: {error}") from error
