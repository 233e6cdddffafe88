"""The bench's small pieces, without timing anything."""

from __future__ import annotations

import importlib
import json
from decimal import Decimal
from pathlib import Path

import pytest

from tests.bench.__main__ import read_options
from tests.bench.cold_starts import (
    CALLS,
    list_functions,
    read_environment,
    write_empty_function,
)
from tests.bench.measuring import FUNCTIONS, CountedOutput, Samples
from tests.bench.prices import (
    Usage,
    duration_ms,
    itemise,
    price_of_authorizations,
    price_of_ledger,
)
from tests.bench.results import Row, make_table, write_results
from tests.bench.usage_mix import SAAS, UsageSource, call_of, delivery_of, pad_event, size_of
from tests.bench.worker_capacity import item_bytes


@pytest.mark.parametrize("module", ["__main__", "worker_report", "worker_project"])
def test_the_parts_of_the_bench_are_importable(module: str) -> None:
    assert importlib.import_module(f"tests.bench.{module}").main


def test_a_source_makes_the_same_events_again_and_none_twice() -> None:
    first, again = (UsageSource(SAAS, seed=5) for _ in range(2))
    events = first.events(50)
    assert [event["id"] for event in events] == [event["id"] for event in again.events(50)]
    assert len({event["id"] for event in events + first.events(50)}) == 100


def test_an_event_is_padded_to_the_byte_and_not_beyond_its_fields() -> None:
    [event] = UsageSource(SAAS, seed=5).events(1)
    assert size_of(pad_event(event, 1024)) == 1024
    with pytest.raises(ValueError, match="5000 bytes"):
        pad_event(event, 5000)


def test_a_call_carries_its_events_and_a_delivery_its_sequence() -> None:
    events = UsageSource(SAAS, seed=5).events(3)
    assert json.loads(call_of(events, "key")["body"])["events"] == events
    items = [{"k": {"S": "a"}}, {"k": {"S": "b"}}]
    sequences = [
        record["dynamodb"]["SequenceNumber"] for record in delivery_of(items, 7)["Records"]
    ]
    assert sequences == ["7", "8"]


def test_every_function_is_started_cold() -> None:
    folders = {path.parent.name for path in FUNCTIONS.glob("*/handler.py")}
    assert set(list_functions()) == folders
    assert set(CALLS) <= folders
    for name in folders:
        assert read_environment(name)["POWERTOOLS_SERVICE_NAME"] == name


def test_an_empty_function_has_its_base_and_makes_what_every_function_makes() -> None:
    source = write_empty_function(
        ["from aws_lambda_powertools import Logger, Metrics", "import botocore.session"]
    )
    compile(source, "empty", "exec")
    assert "logger = Logger()" in source
    assert "APIGatewayHttpResolver()" not in source


def test_the_command_line_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_options([]).only is None
    assert read_options(["--only", "cold", "--only", "usage"]).only == ["cold", "usage"]
    for wrong in (["--fast"], ["--only", "nothing"], ["cold"]):
        with pytest.raises(SystemExit) as ended:
            read_options(wrong)
        assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        read_options(["--help"])
    assert ended.value.code == 0
    assert "--only PART" in capsys.readouterr().out


def test_prices_are_those_of_the_list() -> None:
    nothing = Usage(
        calls=0.01,
        report_ms=0,
        report_memory_mb=1024,
        ledger_write_units=2,
        deliveries=0,
        project_ms=1,
        project_memory_mb=1024,
        projection_write_units=0,
        projection_read_units=0,
        queue_requests=0.5,
        emit_invocations=0,
        emit_ms=0,
        emit_memory_mb=512,
        emission_write_units=0,
        emission_read_units=1,
        log_bytes=1024,
    )
    items = itemise(nothing)
    assert items["HTTP API calls"] == Decimal("0.01")
    assert items["report_usage"] == Decimal("0.002")
    assert items["ledger write units"] == Decimal("1.25")
    assert items["project_usage"] == Decimal("0.0133334")
    assert items["emission queue"] == Decimal("0.25")
    assert items["emission states"] == Decimal("0.125")
    assert items["logs"] == Decimal("0.5") / 1024 / 1024 / 1024 * 1024 * 1_000_000


def test_what_is_outside_of_the_totals_has_its_price_too() -> None:
    assert price_of_ledger(900) == Decimal("0.7")
    assert price_of_authorizations(2, 1, 0, 1024) == Decimal("2.075")


def test_a_function_with_half_a_cpu_takes_twice_as_long_for_what_it_computes() -> None:
    assert duration_ms(10, 1769, 5) == 15
    assert duration_ms(10, 3538, 5) == 15
    assert duration_ms(10, 1769 // 2 + 1, 0) == pytest.approx(20, rel=0.01)


def test_an_items_size_counts_its_names() -> None:
    assert item_bytes({"pk": {"S": "abc"}, "flag": {"BOOL": True}}) == 2 + 3 + 4 + 1
    assert item_bytes({"n": {"N": "1234"}}) == 1 + 4
    assert item_bytes({"b": {"B": "AAAA"}}) == 1 + 3


def test_rounds_are_summed_up_by_their_median() -> None:
    samples = Samples()
    for _ in range(3):
        samples.take(lambda: sum(range(1000)), 10)
    assert samples.summary()["cpu_ms"] == sorted(samples.cpu_ms)[1]


def test_what_a_function_logs_is_counted_in_bytes() -> None:
    output = CountedOutput()
    print("ü", file=output)
    assert output.count_bytes == 3


def test_the_table_is_written_to_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("writes", 2, "units", target="≤ 2", met=True), Row("starts", 1.7, "", met=False)]
    write_results(rows, ["a note"], tmp_path)
    text = (tmp_path / "bench.txt").read_text()
    assert "writes" in text
    assert "NO" in text
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][1]["figure"] == 1.7
    assert "a note" in capsys.readouterr().out
    assert make_table(rows, []).row_count == 2
