"""Senders over HTTP: Slack's incoming webhook, and a signed webhook to the app."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import urllib3
from pydantic_core import to_json

from meterline.domain.customers import Customer
from meterline.domain.messages import Message, name_message, sign_webhook
from meterline.domain.notifications import Notification
from meterline.domain.times import format_time
from meterline.ports import DeliveryFailedError

_TIMEOUT = urllib3.Timeout(connect=3.0, read=10.0)
Settings = Callable[[], Mapping[str, str]]
"""Where to send to, as a secret says it now."""


class SlackSender:
    """Posts to `slack_url`, an incoming webhook."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    def send(
        self,
        _notification: Notification,
        message: Message | None,
        _customer: Customer | None,
        _now: datetime,
    ) -> str | None:
        """Post the message; None, or why there is nobody to post to."""
        url = self._settings().get("slack_url")
        if not url:
            return "not configured"
        assert message is not None
        _post(self._http, url, to_json({"text": message.text}), {})
        return None


class WebhookSender:
    """Posts to `webhook_url`, signed with `webhook_secret` (Standard Webhooks)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    def send(
        self,
        notification: Notification,
        _message: Message | None,
        _customer: Customer | None,
        now: datetime,
    ) -> str | None:
        """Post the facts; None, or why there is nobody to post to."""
        settings = self._settings()
        url, secret = settings.get("webhook_url"), settings.get("webhook_secret")
        if not url or not secret:
            return "not configured"
        body = to_json(
            {
                "type": notification.happening.value,
                "timestamp": format_time(notification.at),
                "data": {"customer": notification.customer, **notification.facts},
            }
        )
        headers = sign_webhook(secret, name_message(notification), int(now.timestamp()), body)
        _post(self._http, url, body, headers)
        return None


def _post(http: urllib3.PoolManager, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    try:
        answer = http.request(
            "POST",
            url,
            body=body,
            headers={"Content-Type": "application/json", **headers},
            redirect=False,
        )
    except urllib3.exceptions.HTTPError as error:
        # The address may hold a secret, and a library's error repeats it.
        raise DeliveryFailedError(type(error).__name__) from None
    if not 200 <= answer.status < 300:
        raise DeliveryFailedError(f"answered {answer.status}")
