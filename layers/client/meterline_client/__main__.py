"""`python -m meterline_client`: deliver what is kept on disk, or stands in a log."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from meterline_client.metering import LOG_MARK, Meter, MeterSettings


def find_events(lines: Iterable[str]) -> Iterator[str]:
    """Find events in the lines of a log, of a segment, or of rejected.jsonl."""
    for text in lines:
        _, mark, rest = text.partition(LOG_MARK)
        candidate = (rest if mark else text).strip()
        try:
            record = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(record, dict):
            event = record.get("event", record)
            if isinstance(event, dict) and {"id", "source", "subject", "data"} <= event.keys():
                yield json.dumps(event, separators=(",", ":"))


def _find_file(name: str) -> Path:
    path = Path(name)
    if name != "-" and (path.is_dir() or not os.access(path, os.R_OK)):
        raise argparse.ArgumentTypeError(f"{name} is no file that can be read")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the METERLINE_ variables say where to. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m meterline_client", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    deliver = commands.add_parser("deliver", help="deliver what processes that are gone left")
    replay = commands.add_parser(
        "replay", help="deliver the events found in logs or in rejected.jsonl"
    )
    replay.add_argument(
        "files", nargs="+", type=_find_file, help="files to read; - is standard input"
    )
    for command in (deliver, replay):
        command.add_argument("--timeout", type=int, default=60, help="seconds to keep trying")
    options = parser.parse_args(arguments)
    try:
        settings = MeterSettings.from_environment()
    except KeyError as missing:
        parser.error(f"{missing.args[0]} is not set in the environment")
    found = 0
    with Meter(settings) as meter:
        for path in getattr(options, "files", ()):
            text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8", "replace")
            for event in find_events(text.splitlines()):
                meter.keep_line(event.encode() + b"\n")
                found += 1
        delivered = meter.flush(options.timeout)
        rejected = meter.counts.get("event_rejected", 0)
    print(f"found {found}, delivered {'all' if delivered else 'not all'}, rejected {rejected}")
    return 0 if delivered and not rejected else 1


if __name__ == "__main__":
    raise SystemExit(main())
