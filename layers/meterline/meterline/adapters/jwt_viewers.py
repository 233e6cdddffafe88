"""Viewers in signed tokens (JWT, HS256), with a key that only the service has.

`aud` is the token's purpose, so that a link's token is no session and a session's no form. A key
is rotated by moving it to `previous_signing_key`: what it signed counts until it expires.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meterline.domain.customers import Role
from meterline.domain.sessions import Viewer
from meterline.errors import ConfigurationError, UnauthenticatedError

if TYPE_CHECKING:
    from meterline.adapters.secrets_dashboard import DashboardSecret

_ISSUER = "meterline"
_ALGORITHM = "HS256"
_MAX_TOKEN_CHARS = 2_000


class JwtViewers:
    """Keeps `meterline.ports.ViewerTokens`."""

    def __init__(self, secret: Callable[[], DashboardSecret]) -> None:
        self._secret = secret

    def sign(self, viewer: Viewer, purpose: str, now: datetime) -> str:
        """A token of that purpose, good until the viewer's `expires_at`."""
        import jwt

        claims = {
            "iss": _ISSUER,
            "aud": purpose,
            "iat": int(now.timestamp()),
            "exp": int(viewer.expires_at.timestamp()),
            "sub": viewer.customer,
            "user": viewer.user,
            "role": viewer.role.value if viewer.role is not None else None,
            "sid": viewer.session,
        }
        return jwt.encode(claims, self._secret().signing_keys[0], algorithm=_ALGORITHM)

    def read(self, token: str, purpose: str, now: datetime) -> Viewer:
        """Who a token of that purpose is for; raises `UnauthenticatedError`."""
        import jwt

        keys = self._secret().signing_keys
        if not keys:
            raise ConfigurationError("there is no signing key")
        if len(token) > _MAX_TOKEN_CHARS:
            raise UnauthenticatedError("This link or session is not valid.")
        for key in keys:
            try:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=[_ALGORITHM],
                    audience=purpose,
                    issuer=_ISSUER,
                    # Time is checked by the clock that was handed in.
                    options={
                        "require": ["exp", "iat", "sub"],
                        "verify_exp": False,
                        "verify_iat": False,
                    },
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError as error:
                raise UnauthenticatedError("This link or session is not valid.") from error
            expires_at = datetime.fromtimestamp(claims["exp"], UTC)
            if now >= expires_at:
                raise UnauthenticatedError("This link or session has ended.")
            role = claims["role"]
            return Viewer(
                claims["sub"],
                claims["user"],
                Role(role) if role is not None else None,
                claims["sid"],
                expires_at,
            )
        raise UnauthenticatedError("This link or session is not valid.")
