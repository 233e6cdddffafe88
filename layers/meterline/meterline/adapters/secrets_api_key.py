"""An API key in Secrets Manager, as JSON: `{"api_key": "…"}`."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from meterline.errors import ConfigurationError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider

_MAX_AGE_S = 300
"""A rotated key counts after five minutes at the latest."""


class SecretApiKey:
    """Gives the key, read at most every five minutes; ConfigurationError where there is none.

    Safe to share between threads: of many that begin at once, one makes the client and reads.
    """

    def __init__(
        self, secret_id: str, make_provider: Callable[[], SecretsProvider] | None = None
    ) -> None:
        self._secret_id = secret_id
        self._make_provider = make_provider or _make_provider
        self._provider: SecretsProvider | None = None
        self._reading = Lock()

    def __call__(self) -> str:
        with self._reading:
            if self._provider is None:
                self._provider = self._make_provider()
            secret = self._provider.get(self._secret_id, transform="json", max_age=_MAX_AGE_S)
        key = secret.get("api_key") if isinstance(secret, dict) else None
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"the secret {self._secret_id} holds no api_key")
        return key


def _make_provider() -> SecretsProvider:
    # Imported late: it loads boto3's client, which only a first send needs.
    from aws_lambda_powertools.utilities.parameters import SecretsProvider

    return SecretsProvider()
