"""Tell people of what happened, each channel once, however often the queue delivers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from meterline.domain.messages import Templates, write_message
from meterline.domain.notifications import CHANNELS, Channel, Notification
from meterline.ports import CustomerAccounts, Deliveries, DeliveryFailedError, Sender

CLAIM_LIFE = timedelta(seconds=60)
"""Longer than any sender takes, so that two runs never send at once."""


@dataclass(slots=True)
class Telling:
    """What became of a notification, channel by channel."""

    sent: list[Channel] = field(default_factory=list)
    skipped: dict[Channel, str] = field(default_factory=dict)
    failed: dict[Channel, str] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be tried again."""
        return not self.failed


class Notify:
    """The job behind the event bus.

    A channel's delivery is claimed before and settled after it is sent. A crash in between sends it
    again when the claim ends: to tell twice is better than not at all, and a webhook's receiver
    knows it by its id.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        customers: CustomerAccounts,
        senders: Mapping[Channel, Sender],
        templates: Templates,
        settings_url: str,
    ) -> None:
        self._deliveries = deliveries
        self._customers = customers
        self._senders = senders
        self._templates = templates
        self._settings_url = settings_url

    def __call__(self, notification: Notification, now: datetime) -> Telling:
        """Tell every channel that has not been told. A failure of one does not hold the others."""
        telling = Telling()
        now_s = int(now.timestamp())
        for channel in CHANNELS[notification.happening]:
            until_s = now_s + int(CLAIM_LIFE.total_seconds())
            if not self._deliveries.claim(notification, channel, now_s, until_s):
                if not self._deliveries.is_delivered(notification, channel):
                    telling.failed[channel] = "another run has it in hand"
                continue
            try:
                reason = self._send(notification, channel, now)
            except DeliveryFailedError as error:
                self._deliveries.give_up_claim(notification, channel)
                telling.failed[channel] = str(error)
                continue
            if reason is None:
                telling.sent.append(channel)
            else:
                telling.skipped[channel] = reason
            self._deliveries.settle(
                notification, channel, "sent" if reason is None else f"skipped: {reason}"
            )
        return telling

    def _send(self, notification: Notification, channel: Channel, now: datetime) -> str | None:
        """Send; the reason when there is nobody to send to."""
        sender = self._senders.get(channel)
        if sender is None:
            return "not configured"
        customer = self._customers.get_customer(notification.customer)
        if channel is Channel.WEBHOOK:
            return sender.send(notification, None, customer, now)
        message = write_message(
            notification,
            channel,
            self._templates,
            name=customer.name if customer is not None else notification.customer,
            settings_url=self._settings_url,
        )
        return sender.send(notification, message, customer, now)
