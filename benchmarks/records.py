"""Reading result files: the records of several runs, merged, grouped and asked for what charts and tables need."""

from __future__ import annotations

from collections.abc import Iterable


def merge(runs: Iterable[dict]) -> list[dict]:
    """Return the records of all runs, one per case; of two records of a case, the later run's stays."""
    cases = {}
    for run in runs:
        for benchmark in run["benchmarks"]:
            record = benchmark["extra_info"]
            if record:
                cases[record["subject"], record["provider"], record["threads"], record["device"]] = record
    return list(cases.values())


def by_subject(records: Iterable[dict]) -> list[list[dict]]:
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["subject"], []).append(record)
    return list(groups.values())


def pixels(record: dict) -> int:
    return record["batch"] * record["height"] * record["width"]


def memory(record: dict) -> int | None:
    """Return the peak bytes on the device that computed, or None where it was not measured."""
    peak = record.get("peak_memory")
    return peak and peak["host_bytes" if record["device"] == "cpu" else "device_bytes"]


def bandwidth(record: dict) -> float | None:
    """Return the bytes per second that a perfect kernel would have had to move."""
    return record["bytes_moved"] / record["median_s"] if record.get("bytes_moved") else None
