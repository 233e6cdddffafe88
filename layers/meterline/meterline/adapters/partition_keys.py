"""What tables and queues keep together: all of one customer's meter."""

from __future__ import annotations


def partition_key(customer: str, meter: str) -> str:
    """`customer#meter`: a partition of a table, and a group of a queue."""
    return f"{customer}#{meter}"
