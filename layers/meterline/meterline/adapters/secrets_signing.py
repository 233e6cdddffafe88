"""The webhooks' signing secrets in Secrets Manager, as JSON: every value is one that counts.

The setup command writes `{"webhook": "whsec_…", "meter_errors": "whsec_…"}`. A rotation adds the
new secret under any further name and takes the old one away once the billing layer has dropped it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from meterline.errors import ConfigurationError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider

_MAX_AGE_S = 300
FRESH_EVERY_S = 10.0
"""Forged signatures must not turn into a stream of calls to Secrets Manager."""


class SigningSecrets:
    """Gives the secrets, read every five minutes, or at once when asked for fresh ones."""

    def __init__(self, secret_id: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._secret_id = secret_id
        self._monotonic = monotonic
        self._provider: SecretsProvider | None = None
        self._asked_s: float | None = None

    def __call__(self, fresh: bool) -> Collection[str]:
        """The secrets; ConfigurationError where there are none."""
        if self._provider is None:
            from aws_lambda_powertools.utilities.parameters import SecretsProvider

            self._provider = SecretsProvider()
        now_s = self._monotonic()
        force = fresh and (self._asked_s is None or now_s - self._asked_s >= FRESH_EVERY_S)
        if force:
            self._asked_s = now_s
        told = self._provider.get(
            self._secret_id, transform="json", max_age=_MAX_AGE_S, force_fetch=force
        )
        secrets = list(told.values()) if isinstance(told, dict) else []
        if not secrets or not all(isinstance(each, str) and each for each in secrets):
            raise ConfigurationError(f"the secret {self._secret_id} holds no signing secrets")
        return secrets
