"""One AWS service's JSON protocol, signed and sent without boto3's client.

For functions that make one small call now and then: loading boto3 and a service's model costs a
cold start 200 ms and more, a signed POST next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import botocore.session
import urllib3
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import NoCredentialsError
from pydantic_core import from_json, to_json

from meterline.adapters.aws_signature import JsonCallSigner
from meterline.adapters.dynamodb_wire import back_off_s, host_header
from meterline.adapters.kept_connections import KeptConnections, NoAnswerError
from meterline.errors import ConfigurationError, StorageError, StorageUnavailableError


class AwsJsonWire:
    """Calls of one service (`service` as botocore names it) whose targets begin with `target`.

    `endpoint_url` is where the service is unless the environment names another endpoint.
    """

    def __init__(
        self,
        service: str,
        target: str,
        endpoint_url: str,
        session: botocore.session.Session | None = None,
        *,
        timeout_s: float = 2.0,
        attempts: int = 3,
    ) -> None:
        session = session or botocore.session.get_session()
        region = session.get_config_variable("region")
        if not region:
            raise ConfigurationError("no AWS region is set")
        self._target = target
        self._attempts = attempts
        self._credentials = session.get_credentials()
        address = _find_endpoint(session, service) or endpoint_url
        url = urllib3.util.parse_url(address)
        self._path = (url.path or "/").rstrip("/") + "/"
        self._signer = JsonCallSigner(service, region, host_header(url), self._path)
        self._connections = KeptConnections(
            url, connect_timeout_s=1.0, read_timeout_s=timeout_s, kept=2
        )

    def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make one call that may be made twice; `StorageUnavailableError` or `StorageError`."""
        body = to_json(request)
        why = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(back_off_s(attempt))
            if self._credentials is None:
                raise NoCredentialsError
            headers = self._signer.sign(
                self._credentials.get_frozen_credentials(),
                f"{self._target}.{operation}",
                body,
                datetime.now(UTC),
            )
            try:
                status, content = self._connections.post(self._path, body, headers)
            except NoAnswerError as error:
                why = f"{operation}: {error}"
                continue
            if status == 200:
                try:
                    told: dict[str, Any] = from_json(content)
                except ValueError as error:
                    # Cut on its way: like a lost answer, it does not say what was done.
                    why = f"{operation}: {error}"
                    continue
                return told
            why = f"{operation}: {status} {content[:300].decode(errors='replace')}"
            if status < 500 and b"Throttl" not in content:
                raise StorageError(str(status), why)
        raise StorageUnavailableError(why)


def _find_endpoint(session: botocore.session.Session, service: str) -> str | None:
    """The endpoint that the environment names, as botocore itself would find it."""
    configured = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name=service,
    ).provide()
    return str(configured) if configured else None
