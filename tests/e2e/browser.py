"""Chromium on the deployed pages: where it is, how it starts, and what it notes while it looks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = REPOSITORY / ".local" / "screenshots"
_AXE = REPOSITORY / ".local" / "axe-core" / "axe.min.js"
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_SERIOUS = ("serious", "critical")
WIDTHS = (375, 1440)
Scheme = Literal["light", "dark"]


@dataclass(slots=True)
class Looked:
    """A page, and what happened while it was looked at."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Of the browser's console: a policy that was violated, a file that was not found."""
    requested: list[str] = field(default_factory=list)

    def number(self, name: str) -> str:
        """The text of what the page marks as that number."""
        return self.page.locator(f'[data-number="{name}"]').first.inner_text().strip()

    def rows(self, table: str) -> list[list[str]]:
        """The cells of a table's body, row by row."""
        found: list[list[str]] = self.page.locator(f'[data-table="{table}"] tbody tr').evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.textContent.trim()))"
        )
        return found

    def origins(self) -> set[str]:
        """Where everything that was loaded came from."""
        return {
            f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
            for url in self.requested
            if not url.startswith("data:")
        }

    def find_violations(self) -> list[str]:
        """What axe-core calls serious or critical."""
        if not _AXE.exists():
            pytest.skip("needs axe-core: run `make axe-core`")
        self.page.evaluate(_AXE.read_text(encoding="utf-8"))
        told: dict[str, Any] = self.page.evaluate("axe.run(document)")
        assert told["passes"], "axe looked at nothing"
        return [
            f"{each['id']}: {each['help']}: {[node['target'] for node in each['nodes']]}"
            for each in told["violations"]
            if each["impact"] in _SERIOUS
        ]

    def save(self, name: str) -> None:
        """A screenshot of the whole page, where a person can look at it."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@contextmanager
def start_chromium(*flags: str) -> Iterator[Browser]:
    """Chromium as Debian has it, without a window and without calls of its own."""
    executable = shutil.which("chromium") or "/usr/bin/chromium"
    if not os.access(executable, os.X_OK):
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*_FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def look(
    browser: Browser, url: str, *, width: int = 1440, scheme: Scheme = "light"
) -> Iterator[Looked]:
    """A page in a browser of its own: no cookie of another one is there."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        # A test signs the certificates of its own sites.
        ignore_https_errors=True,
    )
    try:
        looked = Looked(context.new_page())
        looked.page.on("console", lambda message: looked.complaints.append(message.text))
        looked.page.on("pageerror", lambda error: looked.complaints.append(str(error)))
        looked.page.on("request", lambda request: looked.requested.append(request.url))
        looked.page.goto(url)
        yield looked
    finally:
        context.close()
