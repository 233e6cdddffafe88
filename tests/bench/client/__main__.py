"""`python -m tests.bench.client [--quick] [--output FILE]`: print and keep the table."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.client.measurements import format_table, run

parser = argparse.ArgumentParser(prog="python -m tests.bench.client", description=__doc__)
parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
parser.add_argument("--output", type=Path, default=Path(".local/bench-client.txt"))
options = parser.parse_args()
table = format_table(run(quick=options.quick))
print(table)
options.output.parent.mkdir(parents=True, exist_ok=True)
options.output.write_text(table + "\n", encoding="utf-8")
