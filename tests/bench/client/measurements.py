"""What metering adds to a call, and what its parts cost: ratios against a baseline of this run."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai

from meterline_client import Meter, MeterSettings, acting_for
from meterline_client.attribution import Attribution
from meterline_client.events import Work, encode_event
from meterline_client.signals import SignalBoard
from meterline_client.spool import Spool
from tests.bench.results import Row

ASK: list[Any] = [{"role": "user", "content": "Say hello."}]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the wire server in a process of its own; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.client.wire_server"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


@dataclass
class Comparison:
    """The calling thread's CPU of each call in µs, and what ran behind it per metered call."""

    bare_us: list[float]
    metered_us: list[float]
    background_us: float
    calls: int
    """Of each kind in a block."""

    def added_us(self) -> float:
        """What metering adds to the calling thread: the median over all blocks.

        Each block's own medians are compared: its calls are some ms apart, and so the machine's
        slow and fast spells, which are far apart, fall out.
        """
        starts = range(0, len(self.bare_us), self.calls)
        return statistics.median(
            statistics.median(self.metered_us[start : start + self.calls])
            - statistics.median(self.bare_us[start : start + self.calls])
            for start in starts
        )


def compare(
    bare: Callable[[], object],
    metered: Callable[[], object],
    finish: Callable[[], object],
    *,
    blocks: int,
    calls: int,
    rng: random.Random,
) -> Comparison:
    """Measure both in short blocks, alternating in shuffled order, after a warm-up.

    Only the sender runs beside this thread, so the process's CPU less this thread's is its own.
    """
    for _ in range(20):
        bare()
        metered()
    finish()
    found: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    process_ns, thread_ns = time.process_time_ns(), time.thread_time_ns()
    for block in range(blocks):
        for kind in rng.sample((0, 1), 2):
            call, times_us = (bare, metered)[kind], found[kind]
            for _ in range(calls):
                before_ns = time.thread_time_ns()
                call()
                times_us.append((time.thread_time_ns() - before_ns) / 1_000)
        if block % 20 == 19:
            gc.collect()
    finish()
    behind_ns = time.process_time_ns() - process_ns - (time.thread_time_ns() - thread_ns)
    gc.enable()
    return Comparison(*found, behind_ns / 1_000 / (blocks * calls), calls)


def rows_of_calls(url: str, spool: Path, *, blocks: int, calls: int) -> list[Row]:
    """What metering adds to a call of each official SDK, plain and streamed."""
    rng = random.Random(11)
    settings = MeterSettings(endpoint=url, api_key="k", source="bench", spool=spool)
    rows = []
    with Meter(settings) as meter, acting_for("acme", user="u_1", action="bench"):
        chat = [openai.OpenAI(api_key="k", base_url=url + "/v1") for _ in range(2)]
        messages = [anthropic.Anthropic(api_key="k", base_url=url) for _ in range(2)]
        meter.wrap(chat[1])
        meter.wrap(messages[1])

        def chat_plain(client: openai.OpenAI) -> object:
            return client.chat.completions.create(model="gpt-5-mini", messages=ASK)

        def chat_streamed(client: openai.OpenAI) -> object:
            stream = client.chat.completions.create(
                model="gpt-5-mini",
                messages=ASK,
                stream=True,
                stream_options={"include_usage": True},
            )
            return sum(1 for _ in stream)

        def messages_plain(client: anthropic.Anthropic) -> object:
            return client.messages.create(model="claude-sonnet-5-5", max_tokens=50, messages=ASK)

        def messages_streamed(client: anthropic.Anthropic) -> object:
            stream = client.messages.create(
                model="claude-sonnet-5-5", max_tokens=50, messages=ASK, stream=True
            )
            return sum(1 for _ in stream)

        def flush() -> None:
            if not meter.flush(10):
                raise AssertionError("the ledger did not take the events")

        kinds: list[tuple[str, Callable[[Any], object], list[Any]]] = [
            ("openai chat, plain", chat_plain, chat),
            ("openai chat, 43 chunks", chat_streamed, chat),
            ("anthropic, plain", messages_plain, messages),
            ("anthropic, 8 events", messages_streamed, messages),
        ]
        for name, call, (bare, metered) in kinds:
            found = compare(
                partial(call, bare),
                partial(call, metered),
                flush,
                blocks=blocks,
                calls=calls,
                rng=rng,
            )
            base_us = statistics.median(found.bare_us)
            caller_us = found.added_us()
            added_us = caller_us + found.background_us
            rows.append(
                Row(
                    f"{name}: CPU added per call, sending included",
                    round(added_us),
                    "µs",
                    f"bare call {base_us:.0f} µs",
                    f"{added_us / base_us:.1%}",
                    "≤ 5%",
                    added_us <= base_us * 0.05,
                )
            )
            rows.append(
                Row(
                    f"{name}: calling thread, median",
                    round(caller_us),
                    "µs",
                    f"bare call {base_us:.0f} µs",
                    f"{caller_us / base_us:.1%}",
                    "≤ 150 µs",
                    caller_us <= 150,
                )
            )
    return rows


def rows_of_backlog(spool: Path, *, steps: tuple[int, ...], samples: int) -> list[Row]:
    """The cost of keeping one event while many are kept already and none can be sent."""
    settings = MeterSettings(
        endpoint="http://127.0.0.1:9",
        api_key="k",
        source="bench",
        spool=spool,
        handle_sigterm=False,
        max_spool_bytes=4 << 30,
    )
    attribution = Attribution("acme", "u_1", "bench")
    work = Work("credits", {"input_tokens": 120, "output_tokens": 35}, provider="openai")
    rows: list[Row] = []
    first_us = 0.0
    kept = 0
    with Meter(settings._replace(close_timeout_s=0)) as meter:
        for step in steps:
            while kept < step:
                meter.keep(f"event-{kept}", attribution, work)
                kept += 1
            found_us = []
            for _ in range(samples):
                before_ns = time.perf_counter_ns()
                meter.keep(f"event-{kept}", attribution, work)
                found_us.append((time.perf_counter_ns() - before_ns) / 1_000)
                kept += 1
            median_us = statistics.median(found_us)
            first_us = first_us or median_us
            rows.append(
                Row(
                    f"keeping one event with {step:,} kept",
                    median_us,
                    "µs",
                    f"with none kept {first_us:.1f} µs",
                    f"{median_us / first_us:.2f}",
                    "flat: ≤ 2",
                    median_us <= first_us * 2,
                )
            )
    return rows


def rows_of_spools(directory: Path, *, events: int) -> list[Row]:
    """What a spool could be, measured: the line appended is what was chosen."""
    line = encode_event(
        "0" * 32,
        "bench",
        1_790_000_000.0,
        Attribution("acme", "u_1", "bench"),
        Work("credits", {"input_tokens": 120, "output_tokens": 35}, provider="openai"),
    )
    rows = []

    def measure(name: str, count: int, append: Callable[[int], object], threads: int = 1) -> None:
        started_s, cpu_ns = time.perf_counter(), time.process_time_ns()
        if threads == 1:
            append(count)
        else:
            workers = [
                threading.Thread(target=append, args=(count // threads,)) for _ in range(threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        took_s = time.perf_counter() - started_s
        cpu_us = (time.process_time_ns() - cpu_ns) / 1_000 / count
        rows.append(
            Row(f"spool: {name}", cpu_us, "µs of CPU", f"{count / took_s:,.0f} events per s")
        )

    signals = SignalBoard()
    for strict, threads, count in (
        (False, 1, events),
        (True, 1, events // 50),
        (True, 8, events // 10),
    ):
        spool = Spool(directory / f"spool-{strict}-{threads}", signals, strict=strict)

        def append(count: int, spool: Spool = spool) -> None:
            for _ in range(count):
                spool.append(line)

        name = "appended and synced (strict)" if strict else "line appended (the default)"
        measure(f"{name}, {threads} threads" if threads > 1 else name, count, append, threads)
        spool.close()
    for mode in ("NORMAL", "FULL"):
        connection = sqlite3.connect(directory / f"{mode}.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={mode}")
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, line BLOB)")

        def insert(count: int, connection: sqlite3.Connection = connection) -> None:
            for _ in range(count):
                connection.execute("INSERT INTO events (line) VALUES (?)", (line,))

        measure(f"SQLite row, WAL, synchronous={mode} (not chosen)", events // 50, insert)
        connection.close()
    return rows


def rows_of_delivery(url: str, directory: Path, *, events: int) -> list[Row]:
    """How fast a backlog leaves."""
    settings = MeterSettings(endpoint=url, api_key="k", source="bench", spool=directory)
    attribution = Attribution("acme", "u_1", "bench")
    work = Work("credits", {"input_tokens": 120, "output_tokens": 35}, provider="openai")
    with Meter(settings) as meter:
        started_s, cpu_ns = time.perf_counter(), time.process_time_ns()
        for number in range(events):
            meter.keep(f"event-{number}", attribution, work)
        if not meter.flush(60):
            raise AssertionError("the ledger did not take the events")
        took_s = time.perf_counter() - started_s
        cpu_us = (time.process_time_ns() - cpu_ns) / 1_000 / events
    return [
        Row(
            "an event from work done to delivered, in batches of 500",
            cpu_us,
            "µs of CPU",
            f"{events / took_s:,.0f} events per s",
        )
    ]


def rows_of_import(*, runs: int) -> list[Row]:
    """CPU to import the package, next to openai, in fresh interpreters, with bytecode at hand."""
    program = (
        "import sys, time\n"
        "start = time.process_time_ns()\n"
        "exec(sys.argv[1])\n"
        "print(time.process_time_ns() - start)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    make = (
        "from meterline_client import Meter, MeterSettings; from pathlib import Path; "
        "import tempfile; place = tempfile.TemporaryDirectory(); "
        "Meter(MeterSettings('http://127.0.0.1:9', 'k', 'bench', Path(place.name)))"
    )
    programs = ["import meterline_client", make, "import openai"]
    found_ms: dict[str, list[float]] = {name: [] for name in programs}
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as cache:
        environment["PYTHONPYCACHEPREFIX"] = cache
        for run in range(runs + 1):
            for name in rng.sample(programs, len(programs)):
                done = subprocess.run(
                    [sys.executable, "-c", program, name],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                if run:  # The first run writes the bytecode.
                    found_ms[name].append(int(done.stdout) / 1e6)
    own_ms, made_ms, openai_ms = (statistics.median(found_ms[name]) for name in programs)
    baseline = f"openai {openai_ms:.0f} ms"
    return [
        Row(
            "CPU to import meterline_client",
            own_ms,
            "ms",
            baseline,
            f"{own_ms / openai_ms:.1%}",
            "< 30 ms",
            own_ms < 30,
        ),
        Row(
            "CPU to import it, pathlib and tempfile, and make a meter",
            made_ms,
            "ms",
            baseline,
            f"{made_ms / openai_ms:.1%}",
        ),
    ]


def run(*, quick: bool = False) -> list[Row]:
    """Measure everything; `quick` is a tenth of it, for trying the bench itself."""
    scale = 1 if quick else 10
    with tempfile.TemporaryDirectory() as name, serving() as url:
        directory = Path(name)
        return [
            *rows_of_calls(url, directory / "calls", blocks=20 * scale, calls=5),
            *rows_of_backlog(
                directory / "backlog", steps=(0, 10_000 * scale, 50_000 * scale), samples=2_000
            ),
            *rows_of_spools(directory, events=5_000 * scale),
            *rows_of_delivery(url, directory / "delivery", events=5_000 * scale),
            *rows_of_import(runs=scale),
        ]
