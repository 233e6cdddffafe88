"""Sessions of the app's own sign-in (Clerk, Supabase Auth, Auth.js), verified by the client layer.

`sign_in` in the dashboard's secret names one of them, with the arguments of its class:
`{"kind": "clerk", "issuer": "https://…", "authorized_parties": ["https://app.example"]}`,
`{"kind": "supabase", "project_url": "https://…", "organisation_field": "org"}`,
`{"kind": "authjs", "secrets": ["…"], "organisation_claim": "org"}` or
`{"kind": "app", "issuer": "…", "audience": "…", "public_key": "-----BEGIN…"}`.
The organisation of the session, or else its user, is the customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from meterline.domain.customers import Role
from meterline.domain.sessions import SESSION_LIFE, Viewer
from meterline.errors import ConfigurationError, StorageUnavailableError, UnauthenticatedError

if TYPE_CHECKING:
    from meterline.adapters.secrets_dashboard import DashboardSecret
    from meterline_client.identity import Identity

_Verify = Callable[[str | None, Mapping[str, str]], "Identity"]


@dataclass(slots=True)
class _Verifier:
    settings: Mapping[str, Any]
    verify: _Verify


class IdentitySessions:
    """Keeps `meterline.ports.AppSessions`."""

    def __init__(self, secret: Callable[[], DashboardSecret]) -> None:
        self._secret = secret
        self._verifier: _Verifier | None = None

    def find(
        self, authorization: str | None, cookies: Mapping[str, str], now: datetime
    ) -> Viewer | None:
        """Who is signed in to the app; None where no sign-in is set up or nothing was presented."""
        settings = self._secret().sign_in
        if settings is None:
            return None
        from meterline_client.identity_refusals import (
            IdentityRefusedError,
            KeysUnavailableError,
            TokenMissingError,
        )

        if self._verifier is None or self._verifier.settings != settings:
            self._verifier = _Verifier(settings, _make_verifier(settings))
        try:
            identity = self._verifier.verify(authorization, cookies)
        except TokenMissingError:
            return None
        except IdentityRefusedError as error:
            raise UnauthenticatedError(f"Your sign-in was refused: {error}.") from error
        except KeysUnavailableError as error:
            raise StorageUnavailableError(str(error)) from error
        if identity.impersonator is not None:
            raise UnauthenticatedError("An impersonated session does not open this page.")
        personal = identity.organisation is None
        return Viewer(
            customer=identity.customer,
            user=identity.user,
            # Whoever is the customer in person sees all of it; a seat what the list says.
            role=Role.ADMIN if personal else Role.MEMBER,
            session=sha256(f"{identity.customer}\0{identity.user}".encode()).hexdigest()[:32],
            expires_at=now + SESSION_LIFE,
        )


def _make_verifier(settings: Mapping[str, Any]) -> _Verify:
    from meterline_client.identity import (
        AppTokens,
        AuthJsSessions,
        ClerkSessions,
        SupabaseSessions,
        find_token,
    )

    arguments = {name: value for name, value in settings.items() if name != "kind"}
    kind = settings.get("kind")
    makers: dict[str, Callable[..., Any]] = {
        "clerk": ClerkSessions,
        "supabase": SupabaseSessions,
        "authjs": AuthJsSessions,
        "app": AppTokens,
    }
    if kind not in makers:
        raise ConfigurationError(f"sign_in.kind must be one of {', '.join(makers)}")
    cookie = arguments.pop("token_cookie", "__session") if kind != "authjs" else ""
    try:
        sessions = makers[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"sign_in: {error}") from error

    def verify(authorization: str | None, cookies: Mapping[str, str]) -> Identity:
        if kind == "authjs":
            found: Identity = sessions.verify(cookies)
        else:
            found = sessions.verify(find_token(authorization, cookies, cookie))
        return found

    return verify
