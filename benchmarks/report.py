"""Turn result files into Markdown tables and charts: ``python -m benchmarks.report RESULT.json ... -o FOLDER``.

Result files come from ``pytest benchmarks/ --benchmark-json=RESULT.json``; RESULT.jsonl beside it has the records of a
run that was interrupted. Of several files the later one wins where both hold the same case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from benchmarks import charts
from benchmarks.methods import OURS
from benchmarks.records import bandwidth, by_subject, memory, merge
from ffmef import files
from ffmef.errors import InputError

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
CHART_TITLES = {
    "running_time.png": "Mean time per pair over MEFB's sizes",
    "roofline.png": "The operator under the memory bandwidth",
    "time_against_size.png": "Time per pixel against the picture's size",
    "memory_against_size.png": "Memory per pixel against the picture's size",
}
PAPER_CLAIMS = {"DPE-MEF": 0.30, "TransMEF": 0.77}  # share of the rival's running time that the paper saves
UNFOLD = "FFMEF (unfold)"
DEFAULTS = (OURS, "PyramidFFMEF", "FFMEF (pictures)", "PyramidFFMEF (pictures)")
FORMS_OF_OURS = (*DEFAULTS, UNFOLD, "FFMEF (eager)")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), metavar="FOLDER", help="default: report")
    parser.add_argument(
        "--readme", type=Path, metavar="README.md", help=f"put charts and claims between its lines {BEGIN} and {END}"
    )
    args = parser.parse_args(argv)
    try:
        runs = [read(path) for path in args.results]
        around = args.readme and outside_of_marks(args.readme)
    except InputError as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    records = merge(runs)
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = charts.draw_all(records, args.output)
    files.write(args.output / "report.md", "\n\n".join(document(runs, records, drawn)) + "\n")
    if around:
        folder = Path(os.path.relpath(args.output, args.readme.parent)).as_posix()
        block = "\n\n".join([BEGIN, *summary(runs, records, drawn, folder), END])
        files.write(args.readme, around[0] + block + around[1])
    print(args.output / "report.md", *(args.output / name for name in drawn), sep="\n")
    return 0


def outside_of_marks(path: Path) -> tuple[str, str]:
    """Return what comes before and after the part of a README that a report writes."""
    try:
        before, rest = path.read_text().split(BEGIN)
        return before, rest.split(END)[1]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (ValueError, IndexError):
        raise InputError(f"{path} must hold one {BEGIN} and behind it {END}") from None


def summary(runs: list[dict], records: list[dict], drawn: list[str], folder: str) -> list[str]:
    """Return what a README shows of a report in ``folder``: charts, noise, the paper's claims and what we lose."""
    parts = ["\n".join(f"![{CHART_TITLES[name]}]({folder}/{name})" for name in drawn)]
    parts.append("\n".join(f"- {line}" for line in dict.fromkeys(line for run in runs for line in run_lines(run))))
    parts.append(f"{noise(records)} [All tables]({folder}/report.md).")
    pairs = [record for record in records if record["subject"] == "mefb"]
    return [*parts, claims(pairs), "Where ours loses:", losses(pairs)] if pairs else parts


def run_lines(run: dict) -> list[str]:
    return [machine_lines(run["machine_info"])[0], run_line(run)]


def read(path: Path) -> dict:
    """Return a result file or the journal of a run, or raise naming the file and what is wrong with it."""
    try:
        text = path.read_text()
        run = journal(text) if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(run, dict) or not {"benchmarks", "machine_info", "commit_info", "mode"} <= run.keys():
        raise InputError(f"{path} is no result file of this suite")
    return run


def journal(text: str) -> dict:
    """Return the run of a journal: a line of facts, then one record per line; an unfinished last line is left out."""
    facts, *lines = text.split("\n")
    run = json.loads(facts)
    if isinstance(run, dict):
        run["benchmarks"] = [json.loads(line) for line in lines[:-1]]
    return run


def document(runs: list[dict], records: list[dict], drawn: list[str]) -> list[str]:
    parts = ["# Benchmark results", header(runs), noise(records)]
    pairs = [record for record in records if record["subject"] == "mefb"]
    if pairs:
        parts += ["## Running time on the sizes of MEFB", running_time(pairs), sampling(pairs)]
        parts += ["### The paper's claims", claims(pairs), "### Where ours loses", losses(pairs)]
    operator = [record for record in records if record.get("operator")]
    if operator:
        parts += ["## The fusion operator", OPERATOR_NOTE]
        parts += [
            section for group in by_subject(operator) for section in (f"### {title(group)}", operator_table(group))
        ]
    others = [record for record in records if record not in pairs and record not in operator]
    for group in by_subject(others):
        parts += [f"## {title(group)}", plain_table(group)]
    parts += ["## Charts", *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in drawn)] if drawn else []
    return parts


OPERATOR_NOTE = (
    "`floor` only reads the filters (`filters.sum()`), in turn with each provider; a backward pass must also write "
    "their gradients. GB/s is the data that a perfect kernel would have to move, divided by the time. Memory is the "
    "peak beyond the inputs. Every result except the floor's was checked against a float64 oracle before it was timed."
)


def header(runs: list[dict]) -> str:
    """Say which machine and software ran what and when; facts that all runs share are said once."""
    lines = dict.fromkeys(line for run in runs for line in machine_lines(run["machine_info"]))
    return "\n".join(f"- {line}" for line in [*lines, *map(run_line, runs)])


def machine_lines(machine: dict) -> list[str]:
    isa = f"torch {machine['instruction_set_torch']}, ffmef {machine['instruction_set_ffmef']}"
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; instruction sets: {isa}; "
        f"device: {machine['device']}",
        f"Python {machine['python']}, torch {machine['torch']}, OpenCV {machine['opencv']}, ffmef {machine['ffmef']}",
    ]


def run_line(run: dict) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    load = ", ".join(f"{machine[key]:.1f}" for key in ("load_at_start", "load_at_end") if machine.get(key) is not None)
    files = sorted({benchmark["fullname"].split("::")[0].split("/")[-1] for benchmark in run["benchmarks"]})
    changed = " with uncommitted changes" if commit.get("dirty") else ""
    return (
        f"{run['datetime'][:16]} UTC, commit {(commit['id'] or 'unknown')[:12]}{changed}, mode {run['mode']}, "
        f"load average at start and end {load or 'unknown'}: {', '.join(files)}"
    )


def noise(records: list[dict]) -> str:
    """Say how far repeated rounds lie apart, and that figures for a GPU are missing if none ran."""
    spreads = [record["iqr_s"] / record["median_s"] for record in records if record.get("iqr_s") is not None]
    single = sum(record["rounds"] < 3 for record in records)
    sentences = [
        "Times are CPU times of the process for one thread, and wall times for several threads.",
        "Provider and baseline ran in turn; the speed-up is the median of the ratios of neighbouring rounds.",
    ]
    if spreads:
        usual, worst = percent(statistics.median(spreads)), percent(max(spreads))
        sentences.append(
            f"Noise: the interquartile range is {usual} of the median in the median case, {worst} in the worst."
        )
    if single:
        sentences.append(f"{single} of {len(records)} cases had fewer than three rounds, so they have no range.")
    if all(record["device"] == "cpu" for record in records):
        sentences.append("Nothing here ran on a GPU.")
    elif any((record.get("gpu_kernels") or {}).get("occupancy_percent") is None for record in records):
        sentences.append("An empty occupancy means that the driver did not report it.")
    return " ".join(sentences)


def running_time(pairs: list[dict]) -> str:
    rows = []
    for record in sorted(pairs, key=lambda record: record["pair_s"]):
        name = record["provider"]
        rows.append(
            [
                name,
                record["kind"],
                f"{record['parameters']:,}" if record["parameters"] else "",
                f"{record['gmac']:.3g}" if record["gmac"] else "",
                seconds(record["pair_s"]),
                spread(record),
                ratio(relative(record, pairs)),
                size(memory(record)),
            ]
        )
    return table(
        [
            "method",
            "timed",
            "parameters",
            "GMAC at 551 x 707",
            "mean time per pair",
            "IQR",
            f"time / {OURS}",
            "peak memory at 551 x 707",
        ],
        rows,
    )


def relative(record: dict, pairs: list[dict]) -> float | None:
    """Return the method's time per pair over ours, from rounds in turn, or from both records if it had another rival.

    None where ours was not measured.
    """
    if record["provider"] == OURS:
        return 1.0
    if record.get("baseline") == OURS:
        return record.get("pair_ratio", 1 / record["speedup"])
    own = next((other for other in pairs if other["provider"] == OURS), None)
    return record["pair_s"] / own["pair_s"] if own else None


def sampling(pairs: list[dict]) -> str:
    counts = sorted({(record["sizes_timed"], record["pairs_stood_for"]) for record in pairs})
    text = " and ".join(f"{timed} sizes standing for {all_} pairs" for timed, all_ in counts)
    return (
        f"Timed: {text}, one thread, batch 1. A sample takes, from equal groups of MEFB's sizes by pixel count, the "
        "size nearest to the group's mean; its mean time is scaled by the ratio of mean pixels (TransMEF: mean "
        "blocks) of all pairs to the sample's. `network` takes prepared tensors and returns a fused tensor, with "
        "colour conversion outside, as the published scripts time it. `picture` takes 8-bit RGB pictures and returns "
        "fused RGB. The rivals are re-implementations with random weights and verified parameter counts, run in this "
        "release of torch."
    )


def claims(pairs: list[dict]) -> str:
    measured = {record["provider"]: record for record in pairs}
    rows = []
    for name, claim in PAPER_CLAIMS.items():
        row = [f"{name}: {percent(claim)} less time"]
        for form in (UNFOLD, OURS):
            if name in measured and form in measured:
                saved = 1 - relative(measured[form], pairs) / relative(measured[name], pairs)
                row.append(f"{percent(saved)} less" if saved >= 0 else f"{percent(-saved)} more")
            else:
                row.append("not measured")
        rows.append(row)
    note = "These are the same networks on the processor named above; on other hardware, the ratios differ."
    return table(["paper", "measured, the release's unfold formulation", "measured, ours"], rows) + "\n\n" + note


def losses(pairs: list[dict]) -> str:
    """Name every rival that is faster than a network of ours of the same kind, or say that none is."""
    lines = []
    for rival in sorted(pairs, key=lambda record: record["pair_s"]):
        for own in pairs:
            if own["kind"] == rival["kind"] and own["provider"] in DEFAULTS and rival["provider"] not in FORMS_OF_OURS:
                factor = own["pair_s"] / rival["pair_s"]
                if factor > 1:
                    lines.append(f"- {rival['provider']} is {factor:.3g} times as fast as {own['provider']}.")
    return "\n".join(lines) or "No rival measured here is faster than ours of the same kind."


def operator_table(group: list[dict]) -> str:
    baseline = next((record["baseline"] for record in group if record.get("speedup")), None)
    rows = [
        [
            record["provider"],
            seconds(record["median_s"]),
            spread(record),
            ratio(record.get("speedup")),
            percent(record["floor_share"]) if "floor_share" in record else "",
            rate(record),
            size(memory(record)),
            *gpu(record),
        ]
        for record in sorted(group, key=lambda record: record["median_s"])
    ]
    return table(
        [
            "provider",
            "median",
            "IQR",
            f"speed-up over {baseline}",
            "share of the floor",
            "GB/s",
            "peak memory",
            *GPU_HEADS,
        ],
        rows,
    )


def plain_table(group: list[dict]) -> str:
    baseline = next((record["baseline"] for record in group if record.get("speedup")), None)
    rows = [
        [
            record["provider"],
            str(record["threads"]),
            seconds(record["median_s"]),
            spread(record),
            ratio(record.get("speedup")),
            rate(record),
            size(memory(record)),
            *gpu(record),
        ]
        for record in sorted(group, key=lambda record: record["median_s"])
    ]
    return table(
        ["provider", "threads", "median", "IQR", f"speed-up over {baseline}", "GB/s", "peak memory", *GPU_HEADS], rows
    )


def title(group: list[dict]) -> str:
    return group[0].get("title") or group[0]["subject"]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table without the columns that are empty in every row."""
    kept = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    lines = [[heads[index] for index in kept], ["---"] + ["---:"] * (len(kept) - 1)]
    lines += [[row[index] for index in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def spread(record: dict) -> str:
    return percent(record["iqr_s"] / record["median_s"]) if record.get("iqr_s") is not None else ""


GPU_HEADS = ["kernel launches", "occupancy"]


def gpu(record: dict) -> list[str]:
    """Return the cells of :data:`GPU_HEADS`, empty on the CPU and where the driver does not tell."""
    kernels = record.get("gpu_kernels") or {"launches": None, "occupancy_percent": None}
    launches, occupancy = kernels["launches"], kernels["occupancy_percent"]
    return ["" if launches is None else str(launches), "" if occupancy is None else f"{occupancy:.0f} %"]


def rate(record: dict) -> str:
    value = bandwidth(record)
    return "" if value is None else f"{value / 1e9:.1f}"


def size(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
