"""`POST /v1/previews`: what an action would cost, before it is done."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import authenticate_and_preview_usage
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.http import answer, make_app, read_json
from meterline.schemas.previews import PreviewInput, read_preview, write_preview

logger = Logger()
app: APIGatewayHttpResolver = make_app(logger)
authenticate, preview_usage, rate_cards = authenticate_and_preview_usage(os.environ)


@app.post("/v1/previews")
def post_preview() -> Response[str]:
    """Preview an action."""
    authenticate(app.current_event.headers.get("authorization"), Scope.USAGE)
    told = PreviewInput.model_validate(read_json(app.current_event))
    now = utc_now()
    preview, terms = preview_usage(read_preview(told, rate_cards, now), now)
    return answer(200, write_preview(preview, terms))


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)
