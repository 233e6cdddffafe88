"""Recompute the digests of an invoice's lines from its events as CSV, with Python and no more.

    python recompute_digest.py EVENTS.csv [FURTHER-PAGE.csv …]

prints each meter, how many events it has, and their digest: the SHA-256 over one line for each
event, sorted as bytes. The invoice says the same, or the list and the bill do not belong together.
Where an invoice has two lines of one meter, as when its plan changed within the period, leave in
the file what lies in one line's period.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

FIELDS = ("source", "id", "time", "meter", "quantity")
GUARDED = {f"'{mark}" for mark in "=+-@\t\r"}
"""What keeps spreadsheets from calculating: the apostrophe is not the event's own."""


def recompute_digests(pages: Iterable[Iterable[str]]) -> Iterator[tuple[str, int, str]]:
    """Meter, events and digest, from the lines of CSV files with all of an invoice's events."""
    lines = defaultdict[str, list[bytes]](list)
    for page in pages:
        for row in csv.DictReader(page):
            values = [row[name][1:] if row[name][:2] in GUARDED else row[name] for name in FIELDS]
            lines[row["meter"]].append("\t".join(values).encode())
    for meter, found in lines.items():
        whole = b"".join(line + b"\n" for line in sorted(found))
        yield meter, len(found), hashlib.sha256(whole).hexdigest()


if __name__ == "__main__":
    texts = [Path(path).read_text(encoding="utf-8") for path in sys.argv[1:]]
    for told in recompute_digests(io.StringIO(text, newline="") for text in texts):
        print(*told, sep="\t")
