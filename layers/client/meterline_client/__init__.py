"""Meter the model calls of an app: one event for each call that succeeded, and nothing lost.

    meter = Meter.from_environment()
    client = meter.wrap(anthropic.Anthropic())

    with acting_for("acme", user="u_9", action="report.generate"):
        client.messages.create(...)

Standard library only. The providers' SDKs are used when the app uses them, and never imported. An
import is felt in every cold start, so what only some calls need is loaded by them, and values here
are named tuples: `dataclasses` with a dozen classes would be a third of the import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterline_client.attribution import (
    Attribution,
    acting_for,
    acting_for_session,
    carry,
    clear_attribution,
    doing,
    set_attribution,
    unmetered,
)
from meterline_client.errors import (
    AuthorizationDeniedError,
    AuthorizationUnavailableError,
    ClientUnsupportedError,
    CustomerMissingError,
    MeterClosedError,
    MeterlineError,
    ServiceUnreachableError,
    SpoolFullError,
)
from meterline_client.metering import Meter, MeterSettings
from meterline_client.signals import Signal

if TYPE_CHECKING:
    from meterline_client.caching import ConvexCache, VercelCache
    from meterline_client.thread_pool import AttributedThreadPool

__all__ = [
    "AttributedThreadPool",
    "Attribution",
    "AuthorizationDeniedError",
    "AuthorizationUnavailableError",
    "ClientUnsupportedError",
    "ConvexCache",
    "CustomerMissingError",
    "Meter",
    "MeterClosedError",
    "MeterSettings",
    "MeterlineError",
    "ServiceUnreachableError",
    "Signal",
    "SpoolFullError",
    "VercelCache",
    "acting_for",
    "acting_for_session",
    "carry",
    "clear_attribution",
    "doing",
    "set_attribution",
    "unmetered",
]


_LATER = {
    "AttributedThreadPool": "meterline_client.thread_pool",
    "ConvexCache": "meterline_client.caching",
    "VercelCache": "meterline_client.caching",
}
"""What most apps do not need, and which would be a third of the import."""


def __getattr__(name: str) -> object:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
