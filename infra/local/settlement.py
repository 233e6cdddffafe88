"""What is still on its way to the bill, read from the stack's own tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from infra.local.stack import LocalStack
from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.sending import Progress


class Settlement:
    """How far the stack has come with what its ledger holds."""

    def __init__(self, stack: LocalStack, meters: Mapping[str, Meter]) -> None:
        self._tables = stack.client("dynamodb")
        self._totals = stack.outputs["TotalsTable"]
        self._emissions = stack.outputs["EmissionsTable"]
        self._hourly = {
            meter.id for meter in meters.values() if meter.emission is EmissionMode.HOURLY
        }

    def count_open(self, accepted: int) -> int:
        """Of `accepted` events, those neither billed nor listed with a reason why not.

        There may be more than those: whoever reports to the same stack must not be waited for.
        """
        counted = 0
        open_hours: dict[tuple[str, str], int] = {}
        for item in self._scan(self._totals):
            pk, sk = item["pk"]["S"], item["sk"]["S"]
            if not sk.startswith("day#"):
                continue
            counted += int(item["n"]["N"])
            if pk.rpartition("#")[2] in self._hourly:
                for hour in (name[1:] for name in item if len(name) == 3 and name[0] == "q"):
                    place = (pk, f"hour#{sk.removeprefix('day#')}T{hour}")
                    open_hours[place] = int(item[f"q{hour}"]["N"])
        pending: dict[tuple[str, str], int] = {}
        for item in self._scan(self._emissions):
            pk = item["pk"]["S"]
            kind, _, name = item["sk"]["S"].partition("#")
            if kind == "batch":
                pending.setdefault((pk, name), int(item["count"]["N"]))
            elif kind == "send":
                pending[pk, name] = item["progress"]["S"].count(Progress.PENDING)
            elif kind == "hour" and "sent_sub_units" in item:
                place = (pk, item["sk"]["S"])
                if open_hours.get(place) == int(item["sent_sub_units"]["S"]):
                    del open_hours[place]
        return max(0, accepted - counted) + sum(pending.values()) + len(open_hours)

    def count_listed(self) -> Mapping[tuple[str, str], Counter[str]]:
        """Events that could not be billed: by customer and meter, then by kind and reason."""
        listed: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for item in self._scan(self._emissions):
            if item["sk"]["S"].startswith("problem#") and "problem" in item:
                reason = f"{item['problem']['S']}: {item['code']['S']}"
                listed[item["customer"]["S"], item["meter"]["S"]][reason] += 1
        return listed

    def _scan(self, table: str) -> Iterator[dict[str, Any]]:
        for page in self._tables.get_paginator("scan").paginate(
            TableName=table, ConsistentRead=True
        ):
            yield from page["Items"]
