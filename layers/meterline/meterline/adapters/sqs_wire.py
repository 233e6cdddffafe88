"""SQS without boto3, whose client is the longest part of a cold start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from meterline.adapters.aws_json_wire import AwsJsonWire
from meterline.errors import StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from botocore.session import Session


class SqsWire:
    """The service behind a queue's URL, with the names of boto3's client.

    Raises `StorageUnavailableError`.
    """

    def __init__(
        self, queue_url: str, session: Session | None = None, *, timeout_s: float = 5.0
    ) -> None:
        # A queue's URL begins with its service's own address.
        address = urlsplit(queue_url)
        self._wire = AwsJsonWire(
            "sqs",
            "AmazonSQS",
            f"{address.scheme}://{address.netloc}",
            session,
            timeout_s=timeout_s,
        )

    def send_message(self, **request: Any) -> Any:
        """Send one; an answer that was lost may make it two."""
        return self._call("SendMessage", request)

    def send_message_batch(self, **request: Any) -> Any:
        """Send up to ten; an answer that was lost may make each of them two."""
        return self._call("SendMessageBatch", request)

    def receive_message(self, **request: Any) -> Any:
        """Receive up to ten."""
        return self._call("ReceiveMessage", request)

    def delete_message(self, **request: Any) -> Any:
        """Delete one."""
        return self._call("DeleteMessage", request)

    def change_message_visibility(self, **request: Any) -> Any:
        """Change when one is seen again."""
        return self._call("ChangeMessageVisibility", request)

    def _call(self, operation: str, request: dict[str, Any]) -> Any:
        try:
            return self._wire.call(operation, request)
        except StorageError as error:
            raise StorageUnavailableError(f"SQS: {error}") from error
