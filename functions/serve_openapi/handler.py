"""`GET /openapi.json`: the API's own description, as `make openapi` wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.http import make_app

logger = Logger()
app: APIGatewayHttpResolver = make_app(logger)
document = Path(__file__).with_name("openapi.json").read_text()


@app.get("/openapi.json")
def get_document() -> Response[str]:
    """The document; it changes only with a deployment."""
    return Response(
        200, "application/json", document, headers={"Cache-Control": "public, max-age=300"}
    )


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)
