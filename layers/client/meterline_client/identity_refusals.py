"""Why a session was not accepted: one class for each reason, so that none is taken for another.

No message holds a token, a cookie or a secret; all of them may be logged.
"""

from __future__ import annotations


class IdentityError(Exception):
    """No identity could be established; the subclasses say whose fault that is."""


class IdentityRefusedError(IdentityError):
    """What was presented is no valid session: answer 401."""


class KeysUnavailableError(IdentityError):
    """The issuer's keys could not be fetched, so nothing can be said: answer 503."""


class PackageMissingError(IdentityError, ImportError):
    """An optional package that this layer of identity needs is not installed."""


class TokenMissingError(IdentityRefusedError):
    """Neither the header nor the cookie holds a token."""


class TokenMalformedError(IdentityRefusedError):
    """This is no token of the expected kind, or a claim in it has the wrong type."""


class AlgorithmRefusedError(IdentityRefusedError):
    """The token names another algorithm than the one pinned for its issuer."""


class KeyUnknownError(IdentityRefusedError):
    """The issuer publishes no key with the id that the token names."""


class SignatureInvalidError(IdentityRefusedError):
    """The token was changed, or made by someone who does not hold the key."""


class TokenExpiredError(IdentityRefusedError):
    """The session has ended."""


class TokenNotYetValidError(IdentityRefusedError):
    """The session has not begun."""


class TokenTooLongLivedError(IdentityRefusedError):
    """The app's token is valid for longer than it may be."""


class WrongIssuerError(IdentityRefusedError):
    """The token comes from another issuer."""


class WrongAudienceError(IdentityRefusedError):
    """The token is meant for another audience."""


class WrongPartyError(IdentityRefusedError):
    """The token was issued to an origin that is not this app's."""


class WrongRoleError(IdentityRefusedError):
    """The token belongs to a role that is not a signed-in user."""


class SessionPendingError(IdentityRefusedError):
    """The user has signed in but not yet done what the app demands of them."""


class ImpersonationRefusedError(IdentityRefusedError):
    """Someone else acts as this user, and the app does not allow that here."""


class AnonymousRefusedError(IdentityRefusedError):
    """The user is anonymous, and the app does not bill anonymous users."""


class OrganisationMissingError(IdentityRefusedError):
    """The session names no organisation in a place that users cannot write to."""


class CookieIncompleteError(IdentityRefusedError):
    """A session cookie in chunks lacks one, or is there both whole and in chunks."""
