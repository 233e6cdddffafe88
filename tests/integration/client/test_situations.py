"""The table of situations, and the two rules that are tested by name."""

from __future__ import annotations

import pytest

from tests.integration.client.provider_server import Fail
from tests.integration.client.situations import ASK, SITUATIONS, format_table, run_situations
from tests.integration.client.world import World


def test_exactly_the_right_events_come_out_of_every_situation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = run_situations()
    with capsys.disabled():
        print("\n" + format_table(rows))
    assert len(rows) == len(SITUATIONS) >= 60
    wrong = [row for row in rows if not row.is_right]
    assert wrong == []


@pytest.mark.usefixtures("acme")
def test_first_attempt_fails_and_only_the_final_success_is_metered(world: World) -> None:
    world.provider.script(Fail(500))
    client = world.openai()

    answer = client.chat.completions.create(model="gpt-5-mini", messages=ASK)

    assert answer.choices[0].message.content == "Hello."
    assert len(world.provider.seen) == 2
    assert world.meter.flush(60)
    (event,) = world.ledger.read_events()
    assert event["subject"] == "acme"
    assert event["type"] == "meterline.usage"
    assert event["specversion"] == "1.0"
    assert event["data"] == {
        "meter": "credits",
        "user": "u_9",
        "action": "report.generate",
        "provider": "openai",
        "model": "gpt-5-mini",
        "usage": {"input_tokens": 120, "output_tokens": 35},
        "response_id": "chatcmpl_01",
    }


@pytest.mark.usefixtures("acme")
def test_a_cache_hit_is_never_metered(world: World) -> None:
    client = world.anthropic()

    @world.meter.cached({}, key=lambda question: question)
    def answer(question: str) -> str:
        found = client.messages.create(
            model="claude-sonnet-5-5",
            max_tokens=50,
            messages=[{"role": "user", "content": question}],
        )
        return str(found.content)

    miss = answer("What is a meter?")
    hits = {answer("What is a meter?") for _ in range(5)}

    assert hits == {miss}
    assert len(world.provider.seen) == 1
    assert world.settle() == ["acme: in 120, out 35"]
