"""The templates of messages, from the checked-in file."""

from __future__ import annotations

import tomllib
from functools import cache

from meterline.catalog import CATALOG_DIR
from meterline.domain.messages import Templates


@cache
def load_templates() -> Templates:
    """Happening, channel, part -> template."""
    templates: Templates = tomllib.loads(
        (CATALOG_DIR / "notifications.toml").read_text(encoding="utf-8")
    )
    return templates
