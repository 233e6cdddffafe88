"""The spool: what is appended is read back once, whoever dies, however the disk behaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline_client.errors import SpoolFullError
from meterline_client.signals import SignalBoard
from meterline_client.spool import Spool


def line_of(name: str) -> bytes:
    return json.dumps({"id": name, "source": "s", "subject": "acme", "data": {}}).encode() + b"\n"


def drain(spool: Spool, max_events: int = 3, max_bytes: int = 1 << 16) -> list[str]:
    """Read and acknowledge everything; return the ids in the order they came."""
    found = []
    while (batch := spool.read_batch(max_events, max_bytes)) is not None:
        assert 0 < len(batch.lines) <= max_events
        found += [json.loads(line)["id"] for line in batch.lines]
        spool.acknowledge(batch)
    return found


@pytest.fixture
def signals() -> SignalBoard:
    return SignalBoard()


@pytest.fixture
def spool(tmp_path: Path, signals: SignalBoard) -> Spool:
    return Spool(tmp_path, signals)


def test_lines_come_out_in_the_order_they_went_in(spool: Spool) -> None:
    names = [f"e{number}" for number in range(50)]
    for name in names:
        spool.append(line_of(name))
    assert drain(spool) == names
    assert not spool.has_work()


def test_a_batch_that_is_not_acknowledged_is_read_again(spool: Spool) -> None:
    spool.append(line_of("a"))
    first = spool.read_batch(10, 1 << 16)
    assert first == spool.read_batch(10, 1 << 16)
    assert spool.has_work()


def test_a_batch_is_bounded_in_bytes_but_a_long_line_is_read_whole(spool: Spool) -> None:
    long = line_of("x" * 5_000)
    for _ in range(3):
        spool.append(long)
    batch = spool.read_batch(10, 100)
    assert batch is not None
    assert batch.lines == (long[:-1],)


@given(
    names=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=60),
    segment_bytes=st.integers(100, 2_000),
    max_events=st.integers(1, 9),
    max_bytes=st.integers(1, 3_000),
    pause=st.integers(1, 7),
)
def test_every_line_comes_out_once_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    segment_bytes: int,
    max_events: int,
    max_bytes: int,
    pause: int,
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory, SignalBoard(), segment_bytes=segment_bytes)
    found = []
    for number, name in enumerate(names):
        spool.append(line_of(name))
        if number % pause == 0 and (batch := spool.read_batch(max_events, max_bytes)):
            found += [json.loads(line)["id"] for line in batch.lines]
            spool.acknowledge(batch)
    found += drain(spool, max_events, max_bytes)
    assert found == names
    spool.close()
    assert list(directory.iterdir()) == []


def test_threads_append_without_losing_or_mixing_lines(spool: Spool) -> None:
    def append(prefix: str) -> None:
        for number in range(300):
            spool.append(line_of(f"{prefix}{number}"))

    threads = [threading.Thread(target=append, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads):
        found += drain(spool, 50)
    found += drain(spool, 50)
    assert sorted(found) == sorted(f"{name}{number}" for name in "abcd" for number in range(300))
    assert [name for name in found if name[0] == "a"] == [f"a{number}" for number in range(300)]


def test_a_living_process_keeps_its_segment_and_a_dead_one_leaves_it(
    tmp_path: Path, signals: SignalBoard
) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from meterline_client.spool import Spool\n"
        "from meterline_client.signals import SignalBoard\n"
        "spool = Spool(Path(sys.argv[1]), SignalBoard())\n"
        'spool.append(b\'{"id":"left","source":"s","subject":"acme","data":{}}\\n\')\n'
        'print("ready", flush=True)\n'
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    spool = Spool(tmp_path, signals)
    assert spool.read_batch(10, 1 << 16) is None
    process.kill()
    process.wait()
    spool.adopt()
    assert drain(spool) == ["left"]
    assert list(tmp_path.glob("events-*")) == []


def test_two_spools_never_adopt_the_same_segment(tmp_path: Path, signals: SignalBoard) -> None:
    dead = Spool(tmp_path, signals)
    dead.append(line_of("left"))
    dead.close()
    first, second = Spool(tmp_path, signals), Spool(tmp_path, signals)
    assert sorted(drain(first) + drain(second)) == ["left"]


def leave_segment(directory: Path, content: bytes) -> None:
    (directory / "events-1-dead-00000000.jsonl").write_bytes(content)


def test_a_torn_last_line_is_set_aside_and_the_others_are_sent(
    tmp_path: Path, signals: SignalBoard
) -> None:
    leave_segment(tmp_path, line_of("a") + line_of("b") + line_of("c")[:-9])
    spool = Spool(tmp_path, signals)
    assert drain(spool) == ["a", "b"]
    assert signals.counts == {"line_damaged": 1}
    (note,) = (tmp_path / "damaged.jsonl").read_text().splitlines()
    assert json.loads(note)["line"].startswith('{"id": "c"')


def test_zeros_that_a_power_cut_left_are_set_aside(tmp_path: Path, signals: SignalBoard) -> None:
    leave_segment(tmp_path, line_of("a") + bytes(4_096) + b"\n" + line_of("b") + bytes(100_000))
    spool = Spool(tmp_path, signals)
    assert drain(spool) == ["a", "b"]
    assert signals.counts == {"line_damaged": 2}


class Disk:
    """Writes as `os.write` does, until it is told to be full or broken."""

    def __init__(self) -> None:
        self.takes_bytes: int | None = None
        self.error: OSError | None = None

    def write(self, fd: int, line: bytes) -> int:
        if self.takes_bytes is not None:
            written = os.write(fd, line[: self.takes_bytes])
            if self.error is None:
                return written
        if self.error is not None:
            raise self.error
        return os.write(fd, line)


@pytest.mark.parametrize("takes_bytes", [0, 1, 20])
@pytest.mark.parametrize("error", [None, OSError(errno.ENOSPC, "no space left")])
def test_a_disk_that_fills_in_mid_line_costs_no_event_and_no_neighbour(
    tmp_path: Path, signals: SignalBoard, takes_bytes: int, error: OSError | None
) -> None:
    disk = Disk()
    spool = Spool(tmp_path, signals, write=disk.write)
    spool.append(line_of("before"))
    disk.takes_bytes, disk.error = takes_bytes, error
    spool.append(line_of("during"))
    disk.takes_bytes, disk.error = None, None
    spool.append(line_of("after"))
    (segment,) = tmp_path.glob("events-*")
    assert segment.read_bytes() == line_of("before") + line_of("after")
    assert signals.counts == {"spool_unwritable": 1}
    assert sorted(drain(spool)) == ["after", "before", "during"]


def test_memory_is_bounded_and_the_last_resort_is_the_log(
    tmp_path: Path, signals: SignalBoard, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    spool = Spool(tmp_path, signals, write=disk.write, max_held=5)
    disk.error = OSError(errno.ENOSPC, "no space left")
    for number in range(3):
        spool.check_room()
        spool.append(line_of(f"e{number}"))
    assert "spool_filling" not in signals.counts
    spool.append(line_of("e3"))
    spool.check_room()
    assert signals.counts["spool_filling"] == 1
    spool.append(line_of("e4"))
    with pytest.raises(SpoolFullError):
        spool.check_room()
    spool.append(line_of("e5"))
    assert signals.counts["event_lost"] == 1
    assert '"id": "e5"' in caplog.text
    assert drain(spool) == ["e0", "e1", "e2", "e3", "e4"]
    spool.check_room()


def test_a_strict_spool_refuses_calls_as_soon_as_memory_would_hold_an_event(
    tmp_path: Path, signals: SignalBoard
) -> None:
    disk = Disk()
    spool = Spool(tmp_path, signals, strict=True, write=disk.write)
    spool.append(line_of("a"))
    spool.check_room()
    disk.error = OSError(errno.EIO, "input/output error")
    spool.append(line_of("b"))
    with pytest.raises(SpoolFullError):
        spool.check_room()


def test_the_disk_is_bounded_with_a_loud_signal_before_the_bound(
    tmp_path: Path, signals: SignalBoard
) -> None:
    line = line_of("e")
    spool = Spool(tmp_path, signals, max_bytes=len(line) * 10)
    for _ in range(8):
        spool.check_room()
        spool.append(line)
    assert signals.counts == {}
    spool.check_room()
    assert signals.counts == {"spool_filling": 1}
    spool.append(line)
    spool.append(line)
    with pytest.raises(SpoolFullError):
        spool.check_room()
    drain(spool)
    spool.check_room()
    assert signals.counts == {"spool_filling": 1, "spool_full": 1}


def test_what_other_processes_keep_counts_against_the_bound(
    tmp_path: Path, signals: SignalBoard
) -> None:
    other = Spool(tmp_path, signals)
    for _ in range(10):
        other.append(line_of("e"))
    spool = Spool(tmp_path, signals, max_bytes=len(line_of("e")) * 10)
    with pytest.raises(SpoolFullError):
        spool.check_room()


def test_what_was_sent_takes_no_room(tmp_path: Path, signals: SignalBoard) -> None:
    spool = Spool(tmp_path, signals, segment_bytes=500)
    for _ in range(20):
        for number in range(20):
            spool.append(line_of(f"e{number}"))
        drain(spool, 7)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_notes_are_kept_beside_the_segments(tmp_path: Path, spool: Spool) -> None:
    spool.append_note("rejected", {"code": "x"})
    spool.append_note("rejected", {"code": "y"})
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["code"] for line in lines] == ["x", "y"]


def test_a_note_that_cannot_be_written_goes_to_the_log(
    tmp_path: Path, signals: SignalBoard, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, signals)
    (tmp_path / "rejected.jsonl").mkdir()
    spool.append_note("rejected", {"code": "x"})
    assert signals.counts == {"event_lost": 1}
    assert '"code":"x"' in caplog.text
