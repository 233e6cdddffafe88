"""Messages: a notification in words, from templates that are kept in one place."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from meterline.domain.notifications import Channel, Notification
from meterline.domain.times import format_time

Templates = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Happening, channel, part (`subject`, `text`) -> template. A happening with other words for what
stopped it is `HardLimitReached:plan_quota`."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a person reads; a channel without subjects leaves it empty."""

    subject: str
    text: str


def write_message(
    notification: Notification,
    channel: Channel,
    templates: Templates,
    *,
    name: str,
    settings_url: str,
) -> Message:
    """The notification in a channel's words. Raises KeyError when the template lacks a fact."""
    facts = {
        **notification.facts,
        "customer": notification.customer,
        "name": name,
        "at": format_time(notification.at),
        "settings_url": settings_url,
    }
    if channel is Channel.SLACK:
        facts = {fact: _escape_slack(value) for fact, value in facts.items()}
    special = f"{notification.happening}:{notification.facts.get('stopped_by')}"
    parts = templates.get(special, templates[notification.happening])[channel]
    return Message(
        parts.get("subject", "").format_map(facts), parts["text"].strip().format_map(facts)
    )


def sign_webhook(secret: str, message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The headers of an outgoing webhook (Standard Webhooks 1.0, symmetric signatures).

    `secret` is `whsec_` and base64. A receiver knows a repeated message by its id.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{at_s}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{signature}",
    }


def name_message(notification: Notification) -> str:
    """A message's id for its receiver: the same on every try, without what a header cannot hold."""
    told = f"{notification.customer}#{notification.id}"
    return "msg_" + hashlib.sha256(told.encode()).hexdigest()[:32]


def _escape_slack(text: str) -> str:
    # Slack's documentation, formatting text: these three, and no others.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
