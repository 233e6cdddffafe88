"""The dashboard inside a page of the app, on another site, in Chromium over https.

A proxy on 127.0.0.1 ends TLS and serves three sites: the dashboard's own (the deployed stack), the
app's, and one that may not frame it. Chromium keeps cookies of other sites out of frames, unless
they are partitioned.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from playwright.sync_api import Browser

from infra.local.stack import LocalStack
from tests.e2e.browser import Looked, look, start_chromium
from tests.e2e.conftest import Api
from tests.e2e.dashboards import DashboardSettings, link

CUSTOMER = "framed-acme"
DASHBOARD, APP, EVIL = "usage.vendor.test", "www.app.test", "www.evil.test"
_HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive"}


def write_certificate(directory: Path) -> Path:
    """A key and a certificate for the three sites, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, DASHBOARD)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(site) for site in (DASHBOARD, APP, EVIL)]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = directory / "sites.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return path


class Sites:
    """The three sites, by the host that is asked for."""

    def __init__(self, stack: LocalStack, certificate: Path) -> None:
        http = urllib3.PoolManager(retries=False, timeout=60.0)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Host"].partition(":")[0] == DASHBOARD:
                    self._pass_on()
                    return
                shown = parse_qs(urlsplit(self.path).query).get("show", [""])[0]
                body = (
                    '<!doctype html><html lang="en"><title>App</title><h1>The app</h1>'
                    '<iframe title="Usage" style="width:100%;height:780px;border:0" '
                    f'src="{escape(shown)}"></iframe>'
                ).encode()
                self._answer(200, {"Content-Type": "text/html; charset=utf-8"}, body)

            def do_POST(self) -> None:
                self._pass_on()

            def _pass_on(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                sent = {name: value for name, value in self.headers.items() if name != "Host"}
                # As API Gateway says it; the gateway of the local stack knows http alone.
                forwarded = {
                    "Host": stack.api_host,
                    "X-Forwarded-Host": self.headers["Host"],
                    "X-Forwarded-Proto": "https",
                }
                answer = http.request(
                    self.command,
                    stack.aws_url + self.path,
                    body=self.rfile.read(size) if size else None,
                    headers={**sent, **forwarded},
                    redirect=False,
                )
                self._answer(answer.status, answer.headers, answer.data)

            def _answer(self, status: int, headers: object, body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():  # type: ignore[attr-defined]
                    if name.lower() not in _HOP_HEADERS:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
                """Say nothing on the terminal."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def origin(self, site: str) -> str:
        return f"https://{site}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class World:
    """The sites, and a browser that finds them."""

    sites: Sites
    browser: Browser
    api: Api

    def link(self) -> str:
        """A link to the dashboard on its own site."""
        path = link(self.api, CUSTOMER).removeprefix(self.api.url)
        return self.sites.origin(DASHBOARD) + path

    def frame(self, site: str) -> str:
        """The address of a page of that site which shows the dashboard."""
        return f"{self.sites.origin(site)}/?show={self.link()}"


@pytest.fixture(scope="module")
def world(api: Api, stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    assert api.put_customer(CUSTOMER, name="Framed Acme").status == 200
    sites = Sites(stack, write_certificate(tmp_path_factory.mktemp("certificate")))
    flags = ("--host-resolver-rules=MAP *.test 127.0.0.1", "--test-third-party-cookie-phaseout")
    try:
        with (
            start_chromium(*flags) as browser,
            DashboardSettings(stack).changed(frame_origins=sites.origin(APP)),
        ):
            yield World(sites, browser, api)
    finally:
        sites.close()


def test_a_page_of_the_app_shows_the_dashboard_and_its_controls_act(world: World) -> None:
    with look(world.browser, world.frame(APP)) as looked:
        frame = looked.page.frame_locator("iframe")
        frame.locator("h1", has_text="Framed Acme · Usage").wait_for()
        assert frame.locator('[data-number="included"]').inner_text() == "1,000"
        looked.save("framed-1440")
        [cookie] = looked.page.context.cookies()
        assert cookie["name"] == "__Host-meterline_session"
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "None")
        assert cookie["partitionKey"], "kept apart for each site that frames it"
        frame.locator("#stop_at").fill("70")
        frame.get_by_text("Save limits").click()
        frame.locator("[role=status]").wait_for()
        assert frame.locator("#stop_at").input_value() == "70.00"
        assert not looked.complaints
    told = world.api.call("GET", f"/v1/customers/{CUSTOMER}/limits", key=world.api.admin_key).told
    assert told["stop_at"] == {"amount_minor": 7000, "currency": "usd"}


def test_a_page_of_another_site_shows_nothing(world: World) -> None:
    with look(world.browser, world.frame(EVIL)) as looked:
        await_refusal(looked)
        looked.page.frames[1].wait_for_url("chrome-error://chromewebdata/")
        assert looked.page.frame_locator("iframe").locator("main").count() == 0


def await_refusal(looked: Looked) -> None:
    """Until the browser has said why it does not show the frame."""
    if not any("frame-ancestors" in each for each in looked.complaints):
        looked.page.wait_for_event("console", lambda told: "frame-ancestors" in told.text)


def test_a_session_of_one_frame_is_none_elsewhere(world: World) -> None:
    with look(world.browser, world.frame(APP)) as looked:
        looked.page.frame_locator("iframe").locator("#limits").wait_for()
        alone = looked.page.context.new_page()
        answer = alone.goto(world.sites.origin(DASHBOARD) + "/settings/usage")
        assert answer is not None
        assert answer.status == 401
