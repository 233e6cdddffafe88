"""Whose call it is: contexts, sessions, and names that are refused before money is spent."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from meterline_client import (
    AttributedThreadPool,
    CustomerMissingError,
    acting_for,
    acting_for_session,
    carry,
    clear_attribution,
    doing,
    set_attribution,
)
from meterline_client.attribution import Attribution, find_attribution


@dataclass(frozen=True)
class Identity:
    """A verified session."""

    user: str
    organisation: str | None = None


def test_nobody_is_acting_at_first() -> None:
    with pytest.raises(CustomerMissingError):
        find_attribution()


def test_the_innermost_block_decides_and_the_outer_one_returns() -> None:
    with acting_for("acme", user="u_1"):
        with acting_for("globex"):
            assert find_attribution() == Attribution("globex")
        assert find_attribution() == Attribution("acme", "u_1")
    with pytest.raises(CustomerMissingError):
        find_attribution()


def test_a_session_of_an_organisation_bills_the_organisation() -> None:
    with acting_for_session(Identity("u_1", "org_1"), action="ask"):
        assert find_attribution() == Attribution("org_1", "u_1", "ask")


def test_a_session_without_one_bills_the_person() -> None:
    with acting_for_session(Identity("u_1")):
        assert find_attribution() == Attribution("u_1", "u_1")


def test_the_app_may_say_which_customer_a_session_is() -> None:
    known = {"u_1": "acme"}
    with acting_for_session(Identity("u_1"), customer_of=lambda found: known[found.user]):
        assert find_attribution() == Attribution("acme", "u_1")


def test_a_session_that_the_app_cannot_place_is_no_session() -> None:
    known: dict[str, str] = {}
    with (
        pytest.raises(KeyError),
        acting_for_session(Identity("u_1"), customer_of=lambda found: known[found.user]),
    ):
        pass


def test_an_action_is_named_for_whoever_is_acting() -> None:
    with acting_for("acme", user="u_1"), doing("report"):
        assert find_attribution() == Attribution("acme", "u_1", "report")
    with pytest.raises(CustomerMissingError), doing("report"):
        pass


def test_a_framework_can_set_and_clear_it() -> None:
    set_attribution("acme", user="u_1")
    assert find_attribution().customer == "acme"
    clear_attribution()
    with pytest.raises(CustomerMissingError):
        find_attribution()


@pytest.mark.parametrize("wrong", ["", "a\nb", "a\x85", "x" * 129, "\ud800", None, 7])
def test_a_name_that_the_service_would_refuse_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(ValueError, match="must"), acting_for(wrong):  # type: ignore[arg-type]
        pass
    if wrong is not None:
        with pytest.raises(ValueError, match="must"), acting_for("acme", user=wrong):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("wrong", ["a b", "-a", "a|b", "x" * 65, "é", "a@b"])
def test_a_customer_id_is_what_the_contract_takes(wrong: str) -> None:
    with pytest.raises(ValueError, match="customer must be"), acting_for(wrong):
        pass


def test_tasks_keep_their_own() -> None:
    async def act(name: str) -> str:
        with acting_for(name):
            await asyncio.sleep(0)
            return find_attribution().customer

    async def act_all() -> list[str]:
        return await asyncio.gather(*(act(f"c{number}") for number in range(20)))

    assert asyncio.run(act_all()) == [f"c{number}" for number in range(20)]


def test_a_thread_has_none_unless_it_is_carried() -> None:
    found: list[str] = []

    def look() -> None:
        try:
            found.append(find_attribution().customer)
        except CustomerMissingError:
            found.append("nobody")

    with acting_for("acme"):
        for target in (look, carry(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert found == ["nobody", "acme"]


def test_an_attributed_pool_keeps_who_submitted() -> None:
    with AttributedThreadPool(2) as pool:
        with acting_for("acme"):
            first = [pool.submit(find_attribution) for _ in range(5)]
        with acting_for("globex"):
            second = pool.submit(find_attribution)
    assert {future.result().customer for future in first} == {"acme"}
    assert second.result().customer == "globex"
