"""The event bus on EventBridge: `source` is `meterline`, `detail-type` what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import to_json

from meterline.domain.notifications import Notification
from meterline.domain.times import format_time
from meterline.ports import NotPublishedError

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

SOURCE = "meterline"


class EventBridgeBus:
    """Keeps `meterline.ports.EventBus`."""

    def __init__(self, bus: str, client: EventBridgeClient | None = None) -> None:
        self._bus = bus
        self._client = client

    def publish(self, notification: Notification) -> None:
        """Put it on the bus; raises `NotPublishedError`."""
        # Crossings are rare: what never publishes does not load the client.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._open().put_events(
                Entries=[
                    {
                        "EventBusName": self._bus,
                        "Source": SOURCE,
                        "DetailType": notification.happening.value,
                        "Detail": _encode(notification),
                        "Time": notification.at,
                    }
                ]
            )
        except (BotoCoreError, ClientError) as error:
            raise NotPublishedError(f"EventBridge: {error}") from error
        if answer["FailedEntryCount"]:
            entry = answer["Entries"][0]
            raise NotPublishedError(f"{entry.get('ErrorCode')}: {entry.get('ErrorMessage')}")

    def _open(self) -> EventBridgeClient:
        if self._client is None:
            import boto3
            from botocore.config import Config

            self._client = boto3.client(
                "events",
                # One try: what fails is published by the next scan.
                config=Config(
                    connect_timeout=1,
                    read_timeout=2,
                    retries={"mode": "standard", "total_max_attempts": 1},
                ),
            )
        return self._client


def _encode(notification: Notification) -> str:
    """As `meterline.schemas.notifications` reads it: its models take long to load."""
    return to_json(
        {
            "id": notification.id,
            "customer": notification.customer,
            "type": notification.happening.value,
            "at": format_time(notification.at),
            "facts": dict(notification.facts),
        }
    ).decode()
