"""What happens to events between the call and the ledger: outages, signals, forks, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from meterline_client import (
    AuthorizationDeniedError,
    AuthorizationUnavailableError,
    acting_for,
)
from meterline_client.__main__ import main
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.world import World

pytestmark = pytest.mark.usefixtures("acme")


def measure_once(world: World, **options: Any) -> None:
    with world.meter.measure(quantity=1, **options):
        pass


def test_a_forked_child_sends_its_own_events_and_none_of_its_parents(world: World) -> None:
    world.meter.close()
    world.meter = world.make_meter(linger_s=60.0)
    measure_once(world, id="parent")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            measure_once(world, id="child")
            status = 0 if world.meter.flush(60) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [event["id"] for event in world.ledger.read_events()] == ["child"]
    assert world.meter.flush(60)
    assert sorted(event["id"] for event in world.ledger.read_events()) == ["child", "parent"]


PROGRAM = """
    import os, sys
    from pathlib import Path
    from meterline_client import Meter, MeterSettings, acting_for

    meters = [Meter(MeterSettings(
        endpoint=sys.argv[1], api_key="test-key", source="tests", spool=Path(sys.argv[2]),
        linger_s=60.0, timeout_s=60.0, close_timeout_s=60.0,
    )) for _ in range(2)]
    with acting_for("acme"):
        for number in range(5):
            with meters[number % 2].measure(quantity=1, id=f"event-{number}"):
                pass
    print("ready", flush=True)
"""


def start_program(ledger: LedgerServer, spool: Path, ending: str) -> subprocess.Popen[str]:
    text = textwrap.dedent(PROGRAM) + ending
    process = subprocess.Popen(
        [sys.executable, "-c", text, ledger.url, str(spool)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_delivers_before_the_process_ends(world: World, tmp_path: Path) -> None:
    process = start_program(world.ledger, tmp_path, "import signal\nsignal.pause()\n")
    assert world.ledger.read_events() == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    assert len(world.ledger.read_events()) == 5


def test_a_process_that_ends_by_itself_delivers_first(world: World, tmp_path: Path) -> None:
    process = start_program(world.ledger, tmp_path, "")
    assert process.wait(60) == 0
    assert len(world.ledger.read_events()) == 5
    assert list(tmp_path.glob("events-*")) == []


def test_what_a_killed_process_left_is_delivered_by_the_command(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_program(world.ledger, tmp_path, "import signal\nsignal.pause()\n")
    process.kill()
    process.wait(60)
    assert world.ledger.read_events() == []
    set_environment(world, tmp_path, monkeypatch)
    assert main(["deliver"]) == 0
    assert len(world.ledger.read_events()) == 5


def set_environment(world: World, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERLINE_ENDPOINT", world.ledger.url)
    monkeypatch.setenv("METERLINE_API_KEY", "test-key")
    monkeypatch.setenv("METERLINE_SOURCE", "tests")
    monkeypatch.setenv("METERLINE_SPOOL", str(spool))


class Lambda:
    """The context of an invocation, in what is used of it."""

    def __init__(self, left_ms: int) -> None:
        self.left_ms = left_ms

    def get_remaining_time_in_millis(self) -> int:
        return self.left_ms


def test_a_lambda_delivers_before_its_invocation_ends(world: World) -> None:
    world.meter.close()
    world.meter = world.make_meter(linger_s=60.0)

    @world.meter.lambda_handler
    def handle(event: Any, context: Any) -> str:
        measure_once(world)
        return str(event["question"])

    assert handle({"question": "q"}, Lambda(60_000)) == "q"
    assert len(world.ledger.read_events()) == 1


def test_what_a_lambda_cannot_deliver_stands_in_its_log_and_is_replayed_once(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.meter.close()
    world.meter = world.make_meter(endpoint="http://127.0.0.1:9")

    @world.meter.lambda_handler
    def handle(event: Any, context: Any) -> None:
        measure_once(world, id="from-the-log")

    handle({}, Lambda(700))
    world.meter.close(0)
    log = tmp_path / "function.log"
    log.write_text("START RequestId: 1\n" + capsys.readouterr().out + "END RequestId: 1\n")
    set_environment(world, tmp_path / "spool", monkeypatch)
    assert main(["replay", str(log)]) == 0
    assert main(["replay", str(log)]) == 0
    assert [event["id"] for event in world.ledger.read_events()] == ["from-the-log"]


def test_rejected_events_are_replayed_once_their_customer_is_known(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ledger.rejects["globex"] = "customer_unknown"
    with acting_for("globex"):
        measure_once(world)
    assert world.meter.flush(60)
    assert world.ledger.read_events() == []
    world.ledger.rejects.clear()
    set_environment(world, tmp_path, monkeypatch)
    assert main(["replay", str(world.settings.spool / "rejected.jsonl")]) == 0
    assert [event["subject"] for event in world.ledger.read_events()] == ["globex"]


@pytest.mark.parametrize(
    ("missing", "told"),
    [("METERLINE_SPOOL", "METERLINE_SPOOL is not set"), ("function.log", "no file that can be")],
)
def test_what_the_command_lacks_is_said_and_not_a_traceback(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    told: str,
) -> None:
    set_environment(world, tmp_path / "spool", monkeypatch)
    (tmp_path / "function.log").touch()
    if missing == "function.log":
        (tmp_path / missing).unlink()
    else:
        monkeypatch.delenv(missing)
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(tmp_path / "function.log")])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_full_disk_holds_events_in_memory_and_says_so(world: World) -> None:
    full = threading.Event()

    def write(fd: int, line: bytes) -> int:
        if full.is_set():
            os.write(fd, line[:7])
            raise OSError(errno.ENOSPC, "no space left")
        return os.write(fd, line)

    world.meter._spool._write = write
    world.ledger.script(*[503] * 2)
    measure_once(world, id="before")
    full.set()
    measure_once(world, id="during")
    full.clear()
    measure_once(world, id="after")
    assert world.meter.flush(60)
    assert world.signals["spool_unwritable"] == 1
    found = sorted(event["id"] for event in world.ledger.read_events())
    assert found == ["after", "before", "during"]


def test_a_clock_that_jumps_loses_nothing(world: World) -> None:
    world.ledger.latest = "2026-12-31T00:00:00Z"
    times = iter([1_790_000_000.0, 1_700_000_000.0, 2_000_000_000.5, 1_790_000_001.0])
    world.meter._clock = lambda: next(times)
    for number in range(4):
        measure_once(world, id=f"event-{number}")
        assert world.meter.flush(60)
    events = {event["id"]: event.get("time") for event in world.ledger.read_events()}
    assert events == {
        "event-0": "2026-09-21T14:13:20.000000Z",
        "event-1": "2023-11-14T22:13:20.000000Z",
        "event-2": None,
        "event-3": "2026-09-21T14:13:21.000000Z",
    }
    assert world.signals == {"clock_ahead": 1}


def test_an_outage_ends_and_everything_arrives_once(world: World) -> None:
    world.ledger.script("reset", 503, "lost", 429, "lost", 500)
    for number in range(200):
        measure_once(world, id=f"event-{number}")
    assert world.meter.flush(60)
    assert len(world.ledger.read_events()) == 200
    assert world.signals["event_rejected"] == 0


# Leave first


def test_an_event_settles_the_authorization_it_was_made_under(world: World) -> None:
    with world.meter.authorized(quantity="50") as leave:
        measure_once(world)
    assert world.meter.flush(60)
    (event,) = world.ledger.read_events()
    assert event["data"]["authorization"] == leave.authorization == "auth_1"
    assert world.ledger.authorizations == [
        {
            "customer": "acme",
            "user": "u_9",
            "action": "report.generate",
            "estimate": {"quantity": "50"},
        }
    ]
    assert world.ledger.held == {}
    assert world.ledger.released == []


def test_what_is_asked_beside_the_estimate_is_not_part_of_it(world: World) -> None:
    with world.meter.authorized(lease=True, meter="credits", expires_in_s=60, quantity="50"):
        measure_once(world)
    assert world.ledger.authorizations == [
        {
            "customer": "acme",
            "user": "u_9",
            "action": "report.generate",
            "estimate": {"quantity": "50"},
            "meter": "credits",
            "lease": True,
            "expires_in_s": 60,
        }
    ]


def test_what_no_event_settles_is_given_back(world: World) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        world.meter.authorized(quantity="50"),
        world.meter.measure(quantity=1),
    ):
        raise ZeroDivisionError
    wait_for_release(world)
    assert world.ledger.released == ["auth_1"]


def test_a_lease_is_closed_with_as_many_events_as_named_it(world: World) -> None:
    client = world.openai()
    with world.meter.authorized(lease=True, quantity="50"):
        for _ in range(3):
            measure_once(world)
        with pytest.raises(ZeroDivisionError), world.meter.measure(quantity=1):
            raise ZeroDivisionError
        stream = client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "x"}], stream=True
        )
    assert world.ledger.released == [], "its stream is still open"
    for _ in stream:
        pass
    assert world.meter.flush(60)
    assert world.ledger.released == ["auth_1"]
    assert world.ledger.release_bodies == [{"events": 4}]
    assert len(world.ledger.read_events()) == 4


def test_a_lease_that_nothing_was_spent_of_is_given_back_whole(world: World) -> None:
    with world.meter.authorized(lease=True, quantity="50"):
        pass
    assert world.meter.flush(60)
    assert world.ledger.release_bodies == [{}]


def test_close_gives_back_what_blocks_still_hold(world: World) -> None:
    lease = world.meter.authorized(lease=True, quantity="50")
    lease.__enter__()
    measure_once(world)
    once = world.meter.authorized(quantity="5")
    once.__enter__()
    assert world.meter.close()
    assert dict(zip(world.ledger.released, world.ledger.release_bodies, strict=True)) == {
        "auth_1": {"events": 1},
        "auth_2": {},
    }
    once.__exit__(None, None, None)
    lease.__exit__(None, None, None)
    assert len(world.ledger.released) == 2, "each once"


def test_a_stream_that_outlives_its_block_still_settles_its_authorization(world: World) -> None:
    client = world.openai()
    with world.meter.authorized(quantity="50"):
        stream = client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "x"}], stream=True
        )
    assert world.ledger.released == []
    for _ in stream:
        pass
    assert world.meter.flush(60)
    (event,) = world.ledger.read_events()
    assert event["data"]["authorization"] == "auth_1"
    assert world.ledger.released == []


def test_a_denial_carries_the_servers_message_and_the_provider_is_not_called(world: World) -> None:
    from decimal import Decimal

    world.ledger.limit = Decimal(10)
    client = world.openai()
    with pytest.raises(AuthorizationDeniedError) as denial, world.meter.authorized(quantity="50"):
        client.chat.completions.create(model="gpt-5-mini", messages=[])
    assert denial.value.message == "You've hit your set limit of $5."
    assert denial.value.code == "limit_reached"
    assert world.provider.seen == []


@pytest.mark.parametrize("status", [500, 503, 429, 401])
def test_without_an_answer_the_meter_fails_closed_unless_told_otherwise(
    world: World, status: int
) -> None:
    world.ledger.authorize_status = status
    with pytest.raises(AuthorizationUnavailableError), world.meter.authorized(quantity="50"):
        measure_once(world)
    world.meter.close()
    world.meter = world.make_meter(fail_open=True)
    with world.meter.authorized(quantity="50") as leave:
        measure_once(world)
    assert leave.authorization is None
    assert world.signals["authorization_unavailable"] == 2
    assert world.settle() == ["acme: credits 1"]


async def authorize_in_a_task(world: World) -> None:
    async with world.meter.authorized_async(quantity="5"):
        measure_once(world)


def test_leave_is_asked_for_from_a_task_without_blocking_its_loop(world: World) -> None:
    import asyncio

    asyncio.run(authorize_in_a_task(world))
    assert world.meter.flush(60)
    (event,) = world.ledger.read_events()
    assert event["data"]["authorization"] == "auth_1"


def wait_for_release(world: World) -> None:
    for thread in threading.enumerate():
        if thread.name == "meterline-release":
            thread.join(60)


def test_signals_reach_the_log_with_ids_and_no_content(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", logger="meterline_client")
    with world.meter.measure(id="silent"):
        pass
    (record,) = [r for r in caplog.records if "usage_unknown" in r.message]
    assert json.loads(json.dumps(record.__dict__["meterline"]))["id"] == "silent"
    assert world.meter.counts == {"usage_unknown": 1}
