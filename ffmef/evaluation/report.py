"""Writes scores as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ffmef.evaluation.found import Failure, Pair
from ffmef.metrics.registry import METRICS


@dataclass
class Report:
    """Everything that the files of a report show."""

    dataset: str
    task: str
    save_as: str
    metrics: list[str]
    methods: list[str]
    pairs: list[Pair]
    scores: dict[str, dict[str, dict[str, float | None]]]  # by method, pair and metric
    fused: dict[str, dict[str, Path]]  # the picture that was scored, by method and pair
    failures: list[Failure]
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def average(self, method: str, metric: str) -> tuple[float | None, int]:
        """Return the mean over the pairs where a metric is defined and finite, and their number."""
        values = [values.get(metric) for values in self.scores.get(method, {}).values()]
        defined = [value for value in values if value is not None and math.isfinite(value)]
        return (math.fsum(defined) / len(defined) if defined else None), len(defined)

    def fewer_pairs(self) -> list[str]:
        """Return a sentence for each method with averages that do not cover all pairs."""
        sentences = []
        for method in self.methods:
            counts = {name: self.average(method, name)[1] for name in self.metrics}
            fewer = {name: count for name, count in counts.items() if count < len(self.pairs)}
            if len(set(counts.values())) == 1 and fewer:
                sentences.append(f"Averages of {method} over {counts[self.metrics[0]]} of {len(self.pairs)} pairs.")
            elif fewer:
                listed = ", ".join(f"{name} {count}" for name, count in fewer.items())
                sentences.append(f"Averages of {method} over fewer pairs: {listed}.")
        return sentences

    def rows(self) -> list[tuple[str, dict[str, float | None]]]:
        """Return the published rows and each method's averages."""
        own = [(method, {name: self.average(method, name)[0] for name in self.metrics}) for method in self.methods]
        return [*self.published.items(), *own]

    def best(self, metric: str) -> float | None:
        """Return the best average of a metric, as it is shown, or None where there is nothing to compare."""
        return best([values.get(metric) for _, values in self.rows()], metric)


def best(values: list[float | None], metric: str) -> float | None:
    """Return the best of several values of a metric as they are shown, or None for fewer than two."""
    shown = [float(show(value)) for value in values if value is not None]
    if len(shown) < 2:
        return None
    return max(shown) if METRICS[metric].higher_is_better else min(shown)


def show(value: float | None) -> str:
    """Return a value with four decimals, two from 100 on, and a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4f}"


def label(metric: str) -> str:
    """Return a metric's name with an arrow towards better values."""
    return f"{metric.replace('_', '-')} {'↑' if METRICS[metric].higher_is_better else '↓'}"


def write_whole(path: Path, write: Callable[[io.TextIOBase], object]) -> None:
    """Write a text file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_csv(report: Report, path: Path) -> None:
    """Write one line per pair and method; an undefined value is empty."""

    def write(file):
        table = csv.writer(file)
        table.writerow(["pair", "method", *report.metrics])
        for pair in report.pairs:
            for method in report.methods:
                values = report.scores.get(method, {}).get(pair.name)
                if values is not None:
                    cells = [values.get(name) for name in report.metrics]
                    table.writerow([pair.name, method, *("" if v is None else repr(v) for v in cells)])

    write_whole(path, write)


def write_json(report: Report, path: Path, versions: dict[str, str]) -> None:
    """Write averages with the number of pairs behind each, versions and failures."""
    averages = {
        method: {
            name: {"mean": mean, "pairs": count}
            for name in report.metrics
            for mean, count in [report.average(method, name)]
        }
        for method in report.methods
    }
    content = {
        "dataset": report.dataset,
        "task": report.task,
        "save_as": report.save_as,
        "pairs": len(report.pairs),
        "averages": averages,
        "published": report.published,
        "higher_is_better": {name: METRICS[name].higher_is_better for name in report.metrics},
        "remarks": report.remarks,
        "failures": [asdict(failure) for failure in report.failures],
        "versions": versions,
    }
    write_whole(path, lambda file: json.dump(content, file, indent=2, allow_nan=False))


def markdown(report: Report) -> str:
    """Return the table of averages, best values in bold, and what needs to be said about it."""
    lines = [
        f"# {report.dataset}: {len(report.pairs)} pairs, task {report.task}",
        "",
        "| | " + " | ".join(label(name) for name in report.metrics) + " |",
        "|---" * (len(report.metrics) + 1) + "|",
    ]
    leading = {name: report.best(name) for name in report.metrics}
    for method, values in report.rows():
        cells = []
        for name in report.metrics:
            text = show(values.get(name))
            cells.append(f"**{text}**" if text == show(leading[name]) != show(None) else text)
        lines.append(f"| {method.replace('|', '/')} | " + " | ".join(cells) + " |")
    lines += ["", f"Fused pictures scored as {report.save_as}. Arrows point to better values, the best are bold."]
    lines += report.fewer_pairs() + report.remarks
    if report.failures:
        lines += ["", "## Not scored", ""]
        lines += [f"- {f.pair}{f' by {f.method}' if f.method else ''}: {f.reason}" for f in report.failures]
    return "\n".join(lines) + "\n"


def write_markdown(report: Report, path: Path) -> None:
    write_whole(path, lambda file: file.write(markdown(report)))
