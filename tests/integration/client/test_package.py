"""The package by itself: it installs alone, and loads nothing but the standard library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import meterline_client

SOURCE = Path(meterline_client.__file__).parent.parent
PROGRAM = """
import json, sys
from pathlib import Path
before = set(sys.modules)
import meterline_client
from meterline_client import Meter, MeterSettings, acting_for
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
meter = Meter(MeterSettings("http://127.0.0.1:9", "k", "tests", Path(sys.argv[1])))
with acting_for("acme"), meter.measure(quantity=1):
    pass
print(json.dumps({"file": meterline_client.__file__, "loaded": loaded}))
meter.close(0)
"""


def test_it_installs_alone_and_imports_the_standard_library_only(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    target = tmp_path / "target"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--disable-pip-version-check"),
            *("--target", str(target), str(copy)),
        ],
        check=True,
        timeout=240,
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "spool")],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found = json.loads(done.stdout)
    assert found["file"].startswith(str(target))
    assert set(found["loaded"]) <= {*sys.stdlib_module_names, "meterline_client"}
    # These cost more to load than all the rest; they are loaded when they are needed.
    assert not {"asyncio", "concurrent", "http", "socket", "ssl", "random"} & set(found["loaded"])
    assert (target / "meterline_client" / "py.typed").exists()
    assert len(list((tmp_path / "spool").glob("events-*"))) == 1
