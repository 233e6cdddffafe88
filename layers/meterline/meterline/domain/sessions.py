"""Who looks at a dashboard: a link to it, and the session that the link is exchanged for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from meterline.domain.customers import Role

LINK_LIFE = timedelta(minutes=5)
"""Long enough to follow it, too short to keep it."""
SESSION_LIFE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Viewer:
    """A signed-in person: of one customer, and of no other."""

    customer: str
    user: str | None
    """None: the customer's own account."""
    role: Role | None
    """What whoever signed them in said they are; None: as the customer's list of users says."""
    session: str
    """Names the session, so that a form belongs to it and to no other; of a link, the one session
    that it starts."""
    expires_at: datetime
