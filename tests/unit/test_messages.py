"""Messages: every happening has its words on every channel, and a webhook its signature."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meterline.catalog.messages import load_templates
from meterline.domain.limits import StopCause
from meterline.domain.messages import sign_webhook, write_message
from meterline.domain.notifications import CHANNELS, Channel, Happening, Notification

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CROSSING = {"meter", "unit", "used", "level", "limit", "included", "resets_at"}
TRIP = {
    *("meter", "unit", "used_last_hour", "typical_day", "threshold", "since"),
    *("top_action", "top_user"),
}
FACTS = {
    Happening.SOFT_LIMIT_CROSSED: CROSSING,
    Happening.HARD_LIMIT_REACHED: CROSSING,
    Happening.CUSTOMER_FROZEN: TRIP,
    Happening.CUSTOMER_FROZEN_BY_OPERATOR: {"by", "reason"},
    Happening.RUNAWAY_SUSPECTED: TRIP,
    Happening.CUSTOMER_UNFROZEN: {"by", "reason", "frozen_at"},
    Happening.INVOICE_SPIKED: {"invoice", "total", "previous", "percent", "lines", "next_step"},
    Happening.BILLING_ALERT_TRIGGERED: {"title", "meter", "unit", "used", "level"},
}


def write(happening: Happening, channel: Channel, value: str = "x") -> str:
    facts = dict.fromkeys(FACTS[happening], value)
    notification = Notification("id", "acme", happening, NOW, facts)
    message = write_message(
        notification, channel, load_templates(), name="Acme {used} Ltd", settings_url="https://app"
    )
    return message.subject + message.text


@pytest.mark.parametrize("happening", Happening)
def test_every_happening_has_its_words_on_every_channel_that_reads_words(
    happening: Happening,
) -> None:
    for channel in CHANNELS[happening]:
        if channel is not Channel.WEBHOOK:
            assert write(happening, channel)


@pytest.mark.parametrize(
    ("cause", "subject", "told"),
    [
        (StopCause.HARD_LIMIT, "You've hit your set limit of x", "Raise it in settings"),
        (
            StopCause.OVERAGE_BLOCKED,
            "You've used the x xs that your plan includes",
            "Allow overage in settings",
        ),
        (
            StopCause.PLAN_QUOTA,
            "You've used the x xs that your plan includes",
            "Change your plan to continue",
        ),
    ],
)
def test_what_stopped_usage_has_words_of_its_own(cause: StopCause, subject: str, told: str) -> None:
    facts = {**dict.fromkeys(CROSSING, "x"), "stopped_by": str(cause)}
    notification = Notification("id", "acme", Happening.HARD_LIMIT_REACHED, NOW, facts)
    message = write_message(
        notification, Channel.EMAIL, load_templates(), name="Acme", settings_url="https://app"
    )
    assert message.subject == subject
    assert told in message.text
    assert ("set limit" in message.text) == (cause is StopCause.HARD_LIMIT)


def test_what_people_chose_is_not_read_as_markup() -> None:
    text = write(Happening.CUSTOMER_FROZEN, Channel.SLACK, "<!channel> & {reason}")
    assert "&lt;!channel&gt; &amp; {reason}" in text
    assert "Acme {used} Ltd" in write(Happening.SOFT_LIMIT_CROSSED, Channel.EMAIL)


def test_a_webhook_is_signed_as_the_standard_says() -> None:
    # The example of the Standard Webhooks specification.
    headers = sign_webhook(
        "whsec_plJ3nmyCDGBKInavdOK15jsl",
        "msg_loFOjxBNrRLzqYUf",
        1_731_705_121,
        b'{"event_type":"ping","data":{"success":true}}',
    )
    assert headers["webhook-signature"] == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
