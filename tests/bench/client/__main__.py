"""`python -m tests.bench.client [--quick]`: what the client costs, on its own."""

from __future__ import annotations

import argparse

from rich.console import Console

from tests.bench.client.measurements import run
from tests.bench.results import make_table

parser = argparse.ArgumentParser(prog="python -m tests.bench.client", description=__doc__)
parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
options = parser.parse_args()
Console(width=None if Console().is_terminal else 150).print(
    make_table(run(quick=options.quick), [])
)
