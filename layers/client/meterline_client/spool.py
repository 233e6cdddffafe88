"""Events kept on disk until Meterline has them: one append-only file per process, adopted on death.

A process appends lines to a segment of its own, which it holds an exclusive `flock` on. The kernel
drops the lock when the process dies, however it dies; any other process that uses the same
directory then adopts the segment and sends it. Sending twice is harmless, since the service takes
an event id once, so what was sent needs no record beside the file: a segment that was sent is
emptied or removed.

An appended line is in the kernel's page cache, so kill -9 costs nothing. A power cut costs at most
what was appended since the last `sync`; in strict mode every append is synced (threads that
append together share one sync), and it costs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from meterline_client.errors import SpoolFullError
from meterline_client.signals import SignalBoard

if TYPE_CHECKING:
    from pathlib import Path  # 5 ms to load, and who has a directory to give has loaded it.

PREFIX = "events-"
SUFFIX = ".jsonl"
MAX_NOTES_BYTES = 64 << 20
"""The most that one notes file (rejected, damaged, unknown) may hold."""


class _Segment:
    """One file of events: `written` bytes are whole lines, of which `sent` bytes are delivered."""

    __slots__ = ("adopted", "fd", "path", "sent", "synced", "written")

    def __init__(self, path: Path, fd: int, written: int, *, adopted: bool) -> None:
        self.path = path
        self.fd = fd
        self.written = written
        self.sent = 0
        self.synced = 0
        self.adopted = adopted


class Batch(NamedTuple):
    """Lines to send together, without their newlines, and where they came from."""

    lines: tuple[bytes, ...]
    segment: _Segment | None
    """None for lines held in memory."""
    end: int
    """What `sent` becomes once the batch is delivered."""


class Mark(NamedTuple):
    """How much had been taken when the mark was made: what a flush waits for."""

    appended_bytes: int
    held: int


class Spool:
    """Keeps lines in order of arrival per process, in bounded disk and memory."""

    def __init__(
        self,
        directory: Path,
        signals: SignalBoard,
        *,
        strict: bool = False,
        segment_bytes: int = 4 << 20,
        max_bytes: int = 1 << 30,
        max_held: int = 1_000,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._directory = directory
        self._signals = signals
        self._strict = strict
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._max_held = max_held
        self._write = write
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._start_empty()
        reference = weakref.ref(self)

        def start_child_empty() -> None:
            spool = reference()
            if spool is not None:
                spool._leave_to_parent()

        os.register_at_fork(after_in_child=start_child_empty)
        self.adopt()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._instance = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._opened = 0
        self._live: _Segment | None = None
        self._sealed: deque[_Segment] = deque()
        self._adopted: deque[_Segment] = deque()
        self._held: deque[bytes] = deque()
        self._appended_bytes = 0
        self._delivered_bytes = 0
        self._held_total = 0
        self._held_delivered = 0
        self._foreign_bytes = 0
        self._filling_raised = False

    def _leave_to_parent(self) -> None:
        """After a fork, the child keeps none of the parent's files: a copied fd holds its lock."""
        for segment in (*self._sealed, *self._adopted, *([self._live] if self._live else [])):
            os.close(segment.fd)
        self._start_empty()

    # Taking events in

    def check_room(self) -> None:
        """Raise SpoolFullError when an event of the next call could not be kept safely."""
        kept_bytes = self._appended_bytes - self._delivered_bytes + self._foreign_bytes
        if kept_bytes * 5 >= self._max_bytes * 4 or len(self._held) * 5 >= self._max_held * 4:
            if not self._filling_raised:
                self._filling_raised = True
                self._signals.raise_signal(
                    "spool_filling",
                    "four fifths of the spool are taken: calls will be refused when it is full",
                    kept_bytes=kept_bytes,
                    max_bytes=self._max_bytes,
                    held=len(self._held),
                )
        elif self._filling_raised:
            self._filling_raised = False
        held_allowed = 0 if self._strict else self._max_held - 1
        if kept_bytes >= self._max_bytes or len(self._held) > held_allowed:
            self._signals.raise_signal(
                "spool_full",
                "events cannot be kept: the call is refused before it is made",
                kept_bytes=kept_bytes,
                held=len(self._held),
            )
            raise SpoolFullError(
                f"the spool in {self._directory} cannot keep another event; see the signals"
            )

    def append(self, line: bytes) -> None:
        """Keep one line that ends with a newline. Never raises: the work is done and paid for.

        When the disk refuses, the line is held in memory; when that is full, it goes to the log.
        """
        try:
            with self._lock:
                segment = self._live
                if segment is None or segment.written >= self._segment_bytes:
                    segment = self._open_segment()
                size = len(line)
                try:
                    if self._write(segment.fd, line) != size:
                        raise OSError(errno.ENOSPC, "the disk took a part of the line only")
                except OSError:
                    self._cut_torn_line(segment)
                    raise
                segment.written += size
                self._appended_bytes += size
                end = segment.written
            if self._strict:
                self._sync_to(segment, end)
        except OSError as error:
            self._hold(line, error)

    def _cut_torn_line(self, segment: _Segment) -> None:
        """What the disk took of a line would stand before the next one."""
        try:
            os.ftruncate(segment.fd, segment.written)
        except OSError:
            self._sealed.append(segment)
            self._live = None

    def _open_segment(self) -> _Segment:
        name = f"{self._instance}-{self._opened:08}"
        path = self._directory / f"{PREFIX}{name}{SUFFIX}"
        # Locked before it has the name that others look for, or one of them could adopt it first.
        unlocked = self._directory / f"new-{name}"
        fd = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(path)
            if self._strict:
                self._sync_directory()
        except OSError:
            os.close(fd)
            raise
        self._opened += 1
        if self._live is not None:
            self._sealed.append(self._live)
        self._live = _Segment(path, fd, 0, adopted=False)
        return self._live

    def _hold(self, line: bytes, error: OSError) -> None:
        with self._lock:
            room = len(self._held) < self._max_held
            if room:
                self._held.append(line)
                self._held_total += 1
        if room:
            self._signals.raise_signal(
                "spool_unwritable",
                f"the disk refused an event ({error}); it is held in memory and may die with it",
                held=len(self._held),
            )
        else:
            self._signals.raise_signal(
                "event_lost",
                "disk and memory are full; the event stands in this log only, to be replayed: "
                + line.decode().rstrip("\n"),
            )

    # Making it durable

    def sync(self) -> None:
        """Make what was appended so far survive a power cut."""
        with self._lock:
            segments = [s for s in (*self._sealed, self._live) if s and s.synced < s.written]
        for segment in segments:
            try:
                self._sync_to(segment, segment.written)
            except OSError as error:
                self._signals.raise_signal("spool_unwritable", f"a sync failed: {error}")

    def _sync_to(self, segment: _Segment, end: int) -> None:
        if segment.synced >= end:
            return
        with self._sync_lock:
            if segment.synced < end:
                reached = segment.written
                os.fdatasync(segment.fd)
                segment.synced = reached

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # Sending them out

    def read_batch(self, max_events: int, max_bytes: int) -> Batch | None:
        """Return the next lines to send, or None. Only one thread may read and acknowledge."""
        with self._lock:
            if self._held:
                return Batch(tuple(line[:-1] for line in list(self._held)[:max_events]), None, 0)
            candidates = [*self._sealed, *([self._live] if self._live else []), *self._adopted]
        for segment in candidates:
            batch = self._read_segment(segment, max_events, max_bytes)
            if batch is not None:
                return batch
        return None

    def _read_segment(self, segment: _Segment, max_events: int, max_bytes: int) -> Batch | None:
        while segment.sent < segment.written:
            # A line longer than the budget is still read whole.
            size = min(segment.written - segment.sent, max_bytes)
            chunk = os.pread(segment.fd, size, segment.sent)
            if not chunk:
                self._set_damaged_aside(segment, b"", segment.written)
                continue
            cut = chunk.rfind(b"\n") + 1
            if not cut and segment.sent + len(chunk) < segment.written:
                max_bytes *= 2
                continue
            if segment.adopted and not cut:
                self._set_damaged_aside(segment, chunk, segment.sent + len(chunk))
                continue
            lines = chunk[:cut].split(b"\n")[:-1][:max_events]
            end = segment.sent + sum(map(len, lines)) + len(lines)
            if not segment.adopted:
                return Batch(tuple(lines), segment, end)
            good = []
            for line in lines:
                if _is_event(line):
                    good.append(line)
                else:
                    self._set_damaged_aside(segment, line, None)
            if good:
                return Batch(tuple(good), segment, end)
            segment.sent = end
        if segment.adopted:
            self._remove(segment, self._adopted)
        elif segment is not self._live:
            self._remove(segment, self._sealed)
        return None

    def _set_damaged_aside(self, segment: _Segment, line: bytes, end: int | None) -> None:
        self.append_note("damaged", {"segment": segment.path.name, "line": line.decode("latin-1")})
        self._signals.raise_signal(
            "line_damaged",
            "a line of a segment is no event (what is left of it is in damaged.jsonl)",
            segment=segment.path.name,
        )
        if end is not None:
            segment.sent = end

    def acknowledge(self, batch: Batch) -> None:
        """The batch is delivered, or stands among the rejected: forget it."""
        segment = batch.segment
        # A sync under way must not outlive the truncation: it would vouch for later lines.
        with self._sync_lock, self._lock:
            if segment is None:
                for _ in batch.lines:
                    self._held.popleft()
                self._held_delivered += len(batch.lines)
                return
            if segment.adopted:
                self._foreign_bytes = max(0, self._foreign_bytes - (batch.end - segment.sent))
            else:
                self._delivered_bytes += batch.end - segment.sent
            segment.sent = batch.end
            if segment is self._live and segment.sent == segment.written:
                os.ftruncate(segment.fd, 0)
                segment.sent = segment.written = segment.synced = 0

    def _remove(self, segment: _Segment, among: deque[_Segment]) -> None:
        with self._lock:
            among.remove(segment)
        # Unlinked before unlocked: whoever waits for the lock finds a file without a name.
        segment.path.unlink(missing_ok=True)
        os.close(segment.fd)

    def adopt(self) -> None:
        """Take over the segments of processes that are gone."""
        foreign_bytes = 0
        own = {s.path.name for s in (*self._sealed, *self._adopted)}
        if self._live is not None:
            own.add(self._live.path.name)
        try:
            paths = sorted(self._directory.iterdir())
        except OSError as error:
            self._signals.raise_signal("spool_unwritable", f"the spool cannot be listed: {error}")
            return
        for path in paths:
            name = path.name
            if not (name.startswith(PREFIX) and name.endswith(SUFFIX)) or name in own:
                continue
            foreign_bytes += self._adopt_segment(path)
        self._foreign_bytes = foreign_bytes + sum(s.written - s.sent for s in self._adopted)

    def _adopt_segment(self, path: Path) -> int:
        """Take one segment over if its process is gone; return its size if it lives on."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            size = os.fstat(fd).st_size
            os.close(fd)
            return size
        status = os.fstat(fd)
        if status.st_nlink == 0:
            os.close(fd)
            return 0
        with self._lock:
            self._adopted.append(_Segment(path, fd, status.st_size, adopted=True))
        return 0

    # What could not be delivered

    def append_note(self, name: str, record: dict[str, object]) -> None:
        """Append one record to `<name>.jsonl` beside the segments, for a person to read."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        path = self._directory / f"{name}{SUFFIX}"
        try:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                if os.fstat(fd).st_size + len(line) > MAX_NOTES_BYTES:
                    raise OSError(errno.EFBIG, "the notes file is full")
                if os.write(fd, line) != len(line):
                    raise OSError(errno.ENOSPC, "the disk took a part of the note only")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._signals.raise_signal(
                "event_lost",
                f"{path.name} cannot be written ({error}); the record stands in this log only: "
                + line.decode().rstrip("\n"),
            )

    def read_undelivered(self) -> list[bytes]:
        """Return every line that waits, without newlines: for a last resort such as a log."""
        with self._lock:
            lines = [line[:-1] for line in self._held]
            segments = [*self._sealed, *([self._live] if self._live else []), *self._adopted]
            for segment in segments:
                size = segment.written - segment.sent
                lines += os.pread(segment.fd, size, segment.sent).split(b"\n")[:-1]
        return lines

    # How it stands

    def mark(self) -> Mark:
        """Mark what was taken so far."""
        with self._lock:
            return Mark(self._appended_bytes, self._held_total)

    def is_delivered(self, mark: Mark) -> bool:
        """Say whether all that was taken before the mark is delivered, and all that was adopted."""
        return (
            self._delivered_bytes >= mark.appended_bytes
            and self._held_delivered >= mark.held
            and not any(s.sent < s.written for s in self._adopted)
        )

    def has_work(self) -> bool:
        """Say whether anything is waiting to be sent."""
        return not self.is_delivered(self.mark())

    def close(self) -> None:
        """Let go of the files. What was not sent stays for the next process."""
        with self._lock:
            segments = [*self._sealed, *self._adopted, *([self._live] if self._live else [])]
            self._live = None
            self._sealed.clear()
            self._adopted.clear()
        for segment in segments:
            if segment.sent == segment.written:
                segment.path.unlink(missing_ok=True)
            os.close(segment.fd)


def _is_event(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and isinstance(event.get("id"), str)
