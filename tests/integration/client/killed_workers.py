"""Workers that make metered calls and are killed at random moments, again and again.

Can be pointed at any deployment of Meterline: `run_killed_workers(endpoint, api_key, …)`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import struct
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx2
import openai

from meterline_client import Meter, MeterSettings, acting_for

RECORD = struct.Struct("<II")
"""What a worker notes once a call was handed back: the call's number, and which attempt it was."""


@dataclass(frozen=True)
class Job:
    """One worker's work: calls number `first` up to `end`, minus those that are noted."""

    endpoint: str
    api_key: str
    customer: str
    provider_url: str
    spool: Path
    notes: Path
    first: int
    end: int
    attempt: int
    through: Path
    """There once nobody is killed any more: no worker makes its last call before."""


@dataclass
class Outcome:
    """What the workers were handed back, as `call-7.2` (call, attempt), and how often they died."""

    handed_back: list[str] = field(default_factory=list)
    kills: int = 0
    kills_at_work: int = 0
    """Kills of a worker that had been handed back something before."""
    seconds: float = 0.0


def name_call(number: int, attempt: int) -> str:
    """The user that a call is attributed to, so that its event can be told from all others."""
    return f"call-{number}.{attempt}"


def read_notes(path: Path) -> list[tuple[int, int]]:
    """What one worker noted, over all of its lives."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [RECORD.unpack_from(data, at) for at in range(0, len(data), RECORD.size)]


def work(job: Job) -> None:
    """Make the calls that are still to be made, noting each once its result is handed back."""
    meter = Meter(
        MeterSettings(
            endpoint=job.endpoint,
            api_key=job.api_key,
            source=f"killed/{job.first}",
            spool=job.spool,
            linger_s=0.02,
        )
    )
    client = meter.wrap(
        openai.OpenAI(
            api_key="k",
            base_url=job.provider_url + "/v1",
            http_client=httpx2.Client(verify=False),
        )
    )
    done = {number for number, _ in read_notes(job.notes)}
    notes = os.open(job.notes, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in range(job.first, job.end):
        if number in done:
            continue
        while number == job.end - 1 and not job.through.exists():
            time.sleep(0.005)
        with acting_for(job.customer, user=name_call(number, job.attempt)):
            client.chat.completions.create(
                model="gpt-5-mini", messages=[{"role": "user", "content": "Say hello."}]
            )
        os.write(notes, RECORD.pack(number, job.attempt))
    meter.close(120)


def run_killed_workers(
    endpoint: str,
    api_key: str,
    provider_url: str,
    directory: Path,
    *,
    customer: str = "acme",
    calls: int = 2_000,
    workers: int = 4,
    kills: int = 100,
    seed: int = 1,
) -> Outcome:
    """Let the workers make all calls, killing one of them `kills` times; deliver what is left."""
    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    spool = directory / "spool"
    started_s = time.monotonic()
    share = calls // workers
    outcome = Outcome()
    jobs = [
        Job(
            endpoint=endpoint,
            api_key=api_key,
            customer=customer,
            provider_url=provider_url,
            spool=spool,
            notes=directory / f"worker-{number}",
            first=number * share,
            end=(number + 1) * share if number < workers - 1 else calls,
            attempt=0,
            through=directory / "through",
        )
        for number in range(workers)
    ]

    def start(number: int) -> BaseProcess:
        job = jobs[number]
        process = context.Process(target=work, args=(job,), daemon=True)
        process.start()
        return process

    def count_noted() -> int:
        sizes = (job.notes.stat().st_size for job in jobs if job.notes.exists())
        return sum(sizes) // RECORD.size

    running = [start(number) for number in range(workers)]
    pause = threading.Event()
    while outcome.kills < kills:
        # Spread over the whole run, then at a moment that nothing in the worker chooses.
        target = calls * outcome.kills // (kills + 1)
        while count_noted() < target and any(process.is_alive() for process in running):
            pause.wait(0.001)
        pause.wait(rng.uniform(0, 0.03))
        alive = [number for number, process in enumerate(running) if process.is_alive()]
        if not alive:
            break
        number = rng.choice(alive)
        running[number].kill()
        running[number].join()
        outcome.kills += 1
        outcome.kills_at_work += jobs[number].notes.exists()
        jobs[number] = Job(**{**vars(jobs[number]), "attempt": jobs[number].attempt + 1})
        running[number] = start(number)
    (directory / "through").touch()
    for process in running:
        process.join(240)
        if process.exitcode != 0:
            raise AssertionError(f"a worker ended with {process.exitcode}")
    with Meter(
        MeterSettings(endpoint=endpoint, api_key=api_key, source="heir", spool=spool)
    ) as heir:
        if not heir.flush(240):
            raise AssertionError("what the dead left was not delivered")
    outcome.handed_back = [name_call(*note) for job in jobs for note in read_notes(job.notes)]
    outcome.seconds = time.monotonic() - started_s
    return outcome
