"""The dashboard's secret in Secrets Manager, as JSON.

`signing_key` is made by the template; `previous_signing_key` is there during a rotation; `sign_in`
says how sessions of the app's own sign-in are verified (`meterline.adapters.identity_sessions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meterline.errors import ConfigurationError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider

_MAX_AGE_S = 300
_MIN_KEY_BYTES = 32
"""RFC 7518, 3.2: an HS256 key is no shorter than its hash."""


@dataclass(frozen=True, slots=True)
class DashboardSecret:
    """The keys, the one that signs first, and the settings of the app's own sign-in."""

    signing_keys: tuple[str, ...]
    sign_in: Mapping[str, Any] | None


class SecretDashboard:
    """Gives the secret, read at most every five minutes; ConfigurationError if it cannot be."""

    def __init__(self, secret_id: str) -> None:
        self._secret_id = secret_id
        self._provider: SecretsProvider | None = None

    def __call__(self) -> DashboardSecret:
        if self._provider is None:
            # Imported late: it loads boto3's client, which public pages do not need.
            from aws_lambda_powertools.utilities.parameters import SecretsProvider

            self._provider = SecretsProvider()
        told = self._provider.get(self._secret_id, transform="json", max_age=_MAX_AGE_S)
        return read_secret(self._secret_id, told)


def read_secret(secret_id: str, told: object) -> DashboardSecret:
    """The secret as JSON says it; raises `ConfigurationError`."""
    if not isinstance(told, dict):
        raise ConfigurationError(f"the secret {secret_id} is no JSON object")
    keys = [told[name] for name in ("signing_key", "previous_signing_key") if name in told]
    if not keys or not all(isinstance(key, str) for key in keys):
        raise ConfigurationError(f"the secret {secret_id} holds no signing_key")
    if any(len(key.encode()) < _MIN_KEY_BYTES for key in keys):
        raise ConfigurationError(f"a key in {secret_id} is shorter than {_MIN_KEY_BYTES} bytes")
    sign_in = told.get("sign_in")
    if sign_in is not None and not isinstance(sign_in, dict):
        raise ConfigurationError(f"sign_in in {secret_id} is no JSON object")
    return DashboardSecret(tuple(keys), sign_in)
