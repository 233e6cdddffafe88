"""Email through SES (API v2), to the customer's own address."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from meterline.domain.customers import Customer
from meterline.domain.messages import Message
from meterline.domain.notifications import Notification
from meterline.ports import DeliveryFailedError


class SesSender:
    """Sends from an address of a verified identity."""

    def __init__(self, sender: str, client: Any = None) -> None:
        self._sender = sender
        self._client = client

    def send(
        self,
        notification: Notification,
        message: Message | None,
        customer: Customer | None,
        _now: datetime,
    ) -> str | None:
        """Send the message; None, or why there is nobody to send to."""
        if customer is None or customer.email is None:
            return "the customer has no email address"
        assert message is not None
        if self._client is None:
            self._client = _make_client()
        try:
            self._client.send_email(
                FromEmailAddress=self._sender,
                Destination={"ToAddresses": [customer.email]},
                Content={
                    "Simple": {
                        "Subject": {"Data": message.subject, "Charset": "UTF-8"},
                        "Body": {"Text": {"Data": message.text, "Charset": "UTF-8"}},
                    }
                },
                EmailTags=[{"Name": "happening", "Value": notification.happening.value}],
            )
        except ClientError as error:
            # The words of a refusal name the address.
            raise DeliveryFailedError(f"SES: {error.response['Error']['Code']}") from None
        except BotoCoreError as error:
            raise DeliveryFailedError(f"SES: {type(error).__name__}") from None
        return None


def _make_client() -> Any:
    # Imported late: much of what is told goes to the platform's own channels, and to no mailbox.
    import boto3
    from botocore.config import Config

    return boto3.client(
        "sesv2",
        config=Config(
            connect_timeout=2, read_timeout=10, retries={"mode": "standard", "max_attempts": 2}
        ),
    )
