"""Servers of this machine for the client's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meterline_client import acting_for
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.provider_server import ProviderServer
from tests.integration.client.world import World, making_world


@pytest.fixture(scope="session")
def provider() -> Iterator[ProviderServer]:
    server = ProviderServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def ledger() -> Iterator[LedgerServer]:
    server = LedgerServer()
    yield server
    server.close()


@pytest.fixture
def world(provider: ProviderServer, ledger: LedgerServer) -> Iterator[World]:
    with making_world(provider, ledger) as found:
        yield found


@pytest.fixture
def acme() -> Iterator[None]:
    with acting_for("acme", user="u_9", action="report.generate"):
        yield
