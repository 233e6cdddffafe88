"""Where notifications go, from a secret in Secrets Manager: JSON that an operator writes.

`{"slack_url": "https://…", "webhook_url": "https://…", "webhook_secret": "whsec_…"}`; what is left
out is not told. Notifications are listed in the app, whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aws_lambda_powertools.utilities.parameters.exceptions import GetParameterError

from meterline.ports import DeliveryFailedError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.parameters import SecretsProvider


class SecretChannels:
    """Gives the addresses, read each time: messages are rare, and a new address counts at once."""

    def __init__(self, secret_id: str) -> None:
        self._secret_id = secret_id
        self._provider: SecretsProvider | None = None

    def __call__(self) -> Mapping[str, str]:
        """The addresses; raises `DeliveryFailedError` when they cannot be read."""
        if self._provider is None:
            from aws_lambda_powertools.utilities.parameters import SecretsProvider

            self._provider = SecretsProvider()
        try:
            told = self._provider.get(self._secret_id, transform="json", force_fetch=True)
        except GetParameterError as error:
            raise DeliveryFailedError(f"the secret cannot be read: {error}") from error
        if not isinstance(told, dict):
            raise DeliveryFailedError(f"the secret {self._secret_id} is not a JSON object")
        return {str(name): str(value) for name, value in told.items()}
