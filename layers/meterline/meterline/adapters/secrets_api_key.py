"""An API key in Secrets Manager, as JSON: `{"api_key": "…"}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterline.errors import ConfigurationError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider

_MAX_AGE_S = 300
"""A rotated key counts after five minutes at the latest."""


class SecretApiKey:
    """Gives the key, read at most every five minutes; ConfigurationError where there is none."""

    def __init__(self, secret_id: str) -> None:
        self._secret_id = secret_id
        self._provider: SecretsProvider | None = None

    def __call__(self) -> str:
        if self._provider is None:
            # Imported late: it loads boto3's client, which only a first send needs.
            from aws_lambda_powertools.utilities.parameters import SecretsProvider

            self._provider = SecretsProvider()
        secret = self._provider.get(self._secret_id, transform="json", max_age=_MAX_AGE_S)
        key = secret.get("api_key") if isinstance(secret, dict) else None
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"the secret {self._secret_id} holds no api_key")
        return key
