"""Stripe's webhooks, on a function URL: take in what is signed, and answer fast."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic_core import to_json

from meterline.bootstrap import receive_stripe_webhook as build_receive_stripe_webhook
from meterline.clock import utc_now
from meterline.domain.webhooks import SignatureRefusedError
from meterline.errors import InvalidRequestError, StorageUnavailableError

logger = Logger()
metrics = Metrics()
receive_stripe_webhook = build_receive_stripe_webhook(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A function URL's call, payload format 2.0."""
    method = event["requestContext"]["http"]["method"]
    if method != "POST":
        return _answer(405, {"code": "method_not_allowed"}, allow="POST")
    signature = event.get("headers", {}).get("stripe-signature", "")
    try:
        receipt = receive_stripe_webhook(_read_body(event), signature, utc_now())
    except SignatureRefusedError as error:
        metrics.add_metric("WebhooksRefused", MetricUnit.Count, 1)
        logger.warning("webhook refused", code=error.code)
        return _answer(400, {"code": error.code})
    except InvalidRequestError as error:
        metrics.add_metric("WebhooksRefused", MetricUnit.Count, 1)
        logger.warning("webhook refused", code=error.code)
        return _answer(error.status, {"code": error.code})
    except StorageUnavailableError as error:
        # Stripe delivers again what is not answered with a 2xx.
        logger.warning("storage unavailable", reason=str(error))
        return _answer(503, {"code": "storage_unavailable"})
    metrics.add_metric("WebhooksReceived", MetricUnit.Count, 1)
    logger.info(
        "webhook received",
        event_id=receipt.notice.id,
        event_type=receipt.notice.type,
        received=receipt.received,
    )
    return _answer(200, {"received": receipt.received})


def _read_body(event: dict[str, Any]) -> bytes:
    body = (event.get("body") or "").encode("utf-8", "surrogatepass")
    if not event.get("isBase64Encoded"):
        return body
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise InvalidRequestError("invalid_body", "The body cannot be decoded.") from None


def _answer(status: int, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **headers},
        "body": to_json(body).decode(),
    }
