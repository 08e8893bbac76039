"""Writes scores as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ffmef import files
from ffmef.errors import counted
from ffmef.evaluation import statistics
from ffmef.evaluation.found import Failure, Pair
from ffmef.faults import Fault
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
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # by method

    def average(self, method: str, metric: str) -> tuple[float | None, int]:
        """Return the mean over the pairs for which a metric is defined and finite, and their number."""
        values = [values.get(metric) for values in self.scores.get(method, {}).values()]
        defined = [value for value in values if value is not None and math.isfinite(value)]
        return (math.fsum(defined) / len(defined) if defined else None), len(defined)

    def fewer_pairs(self) -> list[str]:
        """Return a sentence for each method whose averages do not cover all pairs."""
        sentences = []
        for method in self.methods:
            counts = {name: self.average(method, name)[1] for name in self.metrics}
            fewer = {name: count for name, count in counts.items() if count < len(self.pairs)}
            if len(set(counts.values())) == 1 and fewer:
                pairs = counted(len(self.pairs), "pair")
                sentences.append(f"Averages of {method} over {counts[self.metrics[0]]} of {pairs}.")
            elif fewer:
                listed = ", ".join(f"{name} {count}" for name, count in fewer.items())
                sentences.append(f"Averages of {method} over fewer pairs: {listed}.")
        return sentences

    def values(self, method: str, metric: str) -> dict[str, float]:
        """Return the defined and finite values of a metric by pair."""
        known = {pair: values.get(metric) for pair, values in self.scores.get(method, {}).items()}
        return {pair: value for pair, value in known.items() if value is not None and math.isfinite(value)}

    @functools.cached_property
    def intervals(self) -> dict[str, dict[str, tuple[float, float] | None]]:
        """Bootstrap confidence intervals of the averages, by method and metric."""
        return {
            method: {name: statistics.interval(list(self.values(method, name).values())) for name in self.metrics}
            for method in self.methods
        }

    @functools.cached_property
    def p_values(self) -> dict[tuple[str, str], dict[str, float | None]]:
        """P-values of the paired Wilcoxon test between every two methods, by metric, over the pairs that both have."""
        found: dict[tuple[str, str], dict[str, float | None]] = {}
        for first, second in itertools.combinations(self.methods, 2):
            found[first, second] = {}
            for name in self.metrics:
                own, other = self.values(first, name), self.values(second, name)
                both = [pair for pair in own if pair in other]
                found[first, second][name] = statistics.wilcoxon([own[p] for p in both], [other[p] for p in both])
        return found

    @functools.cached_property
    def standings(self) -> dict[str, statistics.Standing]:
        """Borda counts and mean ranks of two or more methods."""
        if len(self.methods) < 2:
            return {}
        averages = {method: {name: self.average(method, name)[0] for name in self.metrics} for method in self.methods}
        return statistics.standings(averages, {name: METRICS[name].higher_is_better for name in self.metrics})

    def rows(self) -> list[tuple[str, dict[str, float | None]]]:
        """Return the published rows and each method's averages."""
        rows: list[tuple[str, dict[str, float | None]]] = [(name, dict(row)) for name, row in self.published.items()]
        rows += [(method, {name: self.average(method, name)[0] for name in self.metrics}) for method in self.methods]
        return rows

    def best(self, metric: str) -> float | None:
        """Return the best average of a metric, as it is shown, or None if there is nothing to compare."""
        return best([values.get(metric) for _, values in self.rows()], metric)


def best(values: list[float | None], metric: str) -> float | None:
    """Return the best of several values of a metric as they are shown, or None for fewer than two."""
    shown = [float(show(value)) for value in values if value is not None]
    if len(shown) < 2:
        return None
    return max(shown) if METRICS[metric].higher_is_better else min(shown)


def show(value: float | None) -> str:
    """Return a value with four decimals, two from 100 on, or a dash if there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4f}"


def label(metric: str) -> str:
    """Return a metric's name with an arrow in the direction of better values."""
    return f"{metric.replace('_', '-')} {'↑' if METRICS[metric].higher_is_better else '↓'}"


def write_whole(path: Path, write: Callable[[io.TextIOBase], object]) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    write(text)
    files.write(path, text.getvalue())


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
            name: {"mean": mean, "pairs": count, "interval": report.intervals[method][name]}
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
        "wilcoxon": [{"methods": list(both), "p": values} for both, values in report.p_values.items()],
        "standings": {method: asdict(standing) for method, standing in report.standings.items()},
        "higher_is_better": {name: METRICS[name].higher_is_better for name in report.metrics},
        "faults": {method: [line._asdict() for line in lines] for method, lines in report.faults.items()},
        "remarks": report.remarks,
        "failures": [asdict(failure) for failure in report.failures],
        "versions": versions,
    }
    write_whole(path, lambda file: json.dump(content, file, indent=2, allow_nan=False))


# Underscores inside a word are no emphasis.
_MARKS = re.compile(r"[\\`*\[\]|~]|<(?=[\w/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """Return text as Markdown that shows just that, in tables, too.

    Example:
        >>> print(plain("a_b <i> | _c"))
        a_b \\<i> \\| \\_c
    """
    return _MARKS.sub(r"\\\g<0>", text)


def markdown(report: Report) -> str:
    """Return the table of averages, best values in bold, and what needs to be said about it."""
    lines = [
        f"# {plain(report.dataset)}: {counted(len(report.pairs), 'pair')}, task {report.task}",
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
        lines.append(f"| {plain(method)} | " + " | ".join(cells) + " |")
    lines += ["", f"Fused pictures scored as {report.save_as}. Arrows point to better values, the best are bold."]
    lines += map(plain, [*report.fewer_pairs(), *report.remarks])
    lines += _statistics(report)
    if report.faults:
        lines += ["", *fault_table(report.faults)]
    if report.failures:
        lines += ["", "## Not scored", ""]
        lines += [plain(f"- {f.pair}{f' by {f.method}' if f.method else ''}: {f.reason}") for f in report.failures]
    return "\n".join(lines) + "\n"


INTERVALS = "95 % confidence intervals of the averages (bootstrap over pairs, 10 000 samples)"
TESTS = "P-values of the paired two-sided Wilcoxon test between methods (not corrected for their number)"
STANDINGS = "Ranks over all metrics (Borda: M - rank added up, of M methods; mean rank: 1 is best)"


def show_p(value: float | None) -> str:
    """Return a p-value with three significant digits, or a dash if there is none."""
    return show(None) if value is None else f"{value:.3g}" if value >= 0.001 else "< 0.001"


def show_interval(both: tuple[float, float] | None) -> str:
    """Return an interval as two values, or a dash if there is none."""
    return show(None) if both is None else f"{show(both[0])} to {show(both[1])}"


def statistics_tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables of statistics as title, header and rows of text; a single method has fewer."""
    labels = [label(name) for name in report.metrics]
    tables = []
    if any(both is not None for of_method in report.intervals.values() for both in of_method.values()):
        rows = [[m, *(show_interval(report.intervals[m][name]) for name in report.metrics)] for m in report.methods]
        tables.append((INTERVALS, ["", *labels], rows))
    if report.standings:
        ordered = sorted(report.standings.items(), key=lambda entry: entry[1].mean_rank)
        rows = [[method, f"{place.borda:g}", f"{place.mean_rank:.2f}"] for method, place in ordered]
        tables.append((STANDINGS, ["", "Borda ↑", "mean rank ↓"], rows))
    tested = {both: values for both, values in report.p_values.items() if any(p is not None for p in values.values())}
    if tested:
        rows = [[f"{a} / {b}", *(show_p(values[n]) for n in report.metrics)] for (a, b), values in tested.items()]
        tables.append((TESTS, ["", *labels], rows))
    return tables


def _statistics(report: Report) -> list[str]:
    lines = []
    for title, header, rows in statistics_tables(report):
        lines += ["", f"## {title}", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(map(plain, row)) + " |" for row in rows]
    return lines


_TEX = str.maketrans(
    {
        "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
        "<": "$<$", ">": "$>$", "[": "{[}", "*": "{*}",  # the last two mean something after \\\\ of the row above
    }
)  # fmt: skip


def latex(report: Report) -> str:
    """Return the averages, best in bold, and the statistics as LaTeX tables for the package booktabs."""
    leading = {name: report.best(name) for name in report.metrics}
    rows = []
    for method, values in report.rows():
        texts = [show(values.get(name)) for name in report.metrics]
        best_ones = [
            text == show(leading[name]) != show(None) for text, name in zip(texts, report.metrics, strict=True)
        ]
        cells = [text.translate(_TEX) for text in texts]
        cells = [rf"\textbf{{{c}}}" if leads else c for c, leads in zip(cells, best_ones, strict=True)]
        rows.append([method.translate(_TEX), *cells])
    pairs = counted(len(report.pairs), "pair")
    title = f"{report.dataset}: averages over {pairs}, {report.save_as}; best values in bold"
    parts = [_tex_table(title, ["", *(label(name) for name in report.metrics)], rows)]
    for title, header, cells_of in statistics_tables(report):
        parts.append(_tex_table(title, header, [[cell.translate(_TEX) for cell in row] for row in cells_of]))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _tex_table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{title.translate(_TEX)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines += [" & ".join(cell.translate(_TEX) for cell in header) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def write_latex(report: Report, path: Path) -> None:
    write_whole(path, lambda file: file.write(latex(report)))


def fault_table(faults: dict[str, list[Fault]]) -> list[str]:
    """Return the faults of every method as lines of a table: mean and worst over the scenes."""
    lines = ["## Faults", "", "Mean / worst over the scenes; smaller is better, but for the sky.", ""]
    lines += [
        "| | " + " | ".join(map(plain, faults)) + " |",
        "|---" * (len(faults) + 1) + "|",
    ]
    for row in zip(*faults.values(), strict=True):
        cells = [fault_cell(line) for line in row]
        lines.append(f"| {row[0].name}, {row[0].unit} | " + " | ".join(cells) + " |")
    return lines


def fault_cell(line: Fault) -> str:
    """Return the mean and the worst value of a fault, or a dash if the method cannot be measured."""
    return "–" if line.mean is None else f"{line.mean:.2f} / {line.worst:.2f}"


def write_markdown(report: Report, path: Path) -> None:
    write_whole(path, lambda file: file.write(markdown(report)))
