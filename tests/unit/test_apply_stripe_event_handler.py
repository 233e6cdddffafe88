"""The handler of Stripe's events: one that meets a defect costs no other one its turn."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import meterline.bootstrap
from meterline.clock import utc_now
from meterline.domain.webhooks import Notice
from meterline.schemas.webhooks import encode_notice
from meterline.services.apply_stripe_event import Application, Applied

HANDLER = Path(__file__).resolve().parents[2] / "functions/apply_stripe_event/handler.py"
CONTEXT = SimpleNamespace(
    function_name="f", memory_limit_in_mb=1, invoked_function_arn="arn", aws_request_id="id"
)


def test_an_event_that_meets_a_defect_comes_again_alone_and_tells_for_how_long_it_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    applied = []

    def apply(notice: Notice, _now: datetime) -> Application:
        if notice.id == "evt_2":
            raise KeyError("price_details")
        applied.append(notice.id)
        return Application(Applied.NOT_OURS)

    def build(_environment: object) -> Callable[[Notice, datetime], Application]:
        return apply

    monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Meterline")
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "apply_stripe_event")
    monkeypatch.setattr(meterline.bootstrap, "apply_stripe_event", build)
    spec = importlib.util.spec_from_file_location("apply_stripe_event_handler", HANDLER)
    assert spec is not None
    assert spec.loader is not None
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    notices = [Notice(f"evt_{n}", "invoice.created", "in_1", "cus_1", 1) for n in (1, 2, 3)]
    now_ms = int(utc_now().timestamp() * 1000)
    records = [
        {
            "messageId": each.id,
            "body": encode_notice(each),
            # The first has waited the longest, but it waits no more.
            "attributes": {"SentTimestamp": str(now_ms - hours * 3_600_000)},
        }
        for hours, each in zip((9, 2, 1), notices, strict=True)
    ]
    answer = handler.lambda_handler({"Records": records}, CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "evt_2"}]}
    assert applied == ["evt_1", "evt_3"]
    [told] = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    [wait_s] = json.loads(told)["OldestWait"]
    assert 7200 <= wait_s < 9 * 3600
