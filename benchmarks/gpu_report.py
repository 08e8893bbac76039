"""Turn the results of scripts/gpu_first_run.sh into tables and charts: ``python -m benchmarks.gpu_report FOLDER``.

FOLDER holds one .jsonl per run, in the order of their names. FOLDER/report.md gets one column per run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import charts
from benchmarks.methods import OURS
from benchmarks.report import PAPER_CLAIMS, UNFOLD
from ffmef import files

SIZES = ("512", "551x707", "1080p", "12MP")
OPERATOR = "adaptive_fuse"
COPY_BYTES = {"predict_and_fuse": 4 * (70 + 2 + 1), "pyramid_fuse": 4 * (2 + 1) + 0.5}  # per pixel, float32
FORM_BYTES = {"filters+alphas": 572 / 292, "all": 580 / 292}  # of the floor that records are given in: docs/gpu.md
PIXELS = {"512": 512 * 512, "551x707": 551 * 707, "1080p": 1080 * 1920, "12MP": 12_000_000}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args(argv).folder
    runs = {path.stem: read(path) for path in sorted(folder.glob("*.jsonl"))}
    if not runs:
        parser.error(f"FOLDER must hold .jsonl files, got {folder}")
    parts = [operator(runs), others(runs), networks(runs), claims(runs), pictures(runs), rest(runs)]
    files.write(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")
    draw(runs, folder)
    return 0


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find(records: list[dict], **facts) -> dict | None:
    """Return the last record with these facts."""
    found = [record for record in records if all(record.get(key) == value for key, value in facts.items())]
    return found[-1] if found else None


def copy_speed(records: list[dict]) -> float:
    return find(records, what="bandwidth")["copy_GBps"]


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def by_size(runs: dict[str, list[dict]], titles: dict[str, dict], unit) -> str:
    """One row per title and run, one column per size; ``unit`` makes a cell from a record, the run and the size."""
    rows = []
    for title, facts in titles.items():
        for run, records in runs.items():
            cells = [(find(records, size=size, **facts), size) for size in SIZES]
            if any(record for record, _ in cells):
                rows.append([title, run, *(unit(record, records, size) if record else "–" for record, size in cells)])
    return table(["", "run", *(size.replace("x", " × ") for size in SIZES)], rows)


def operator(runs) -> str:
    """adaptive_fuse: milliseconds and, in brackets, how many times the floor."""
    titles = {
        f"{form}, {backend}, {dtype}": {"what": OPERATOR, "form": form, "backend": backend, "dtype": dtype}
        for dtype in ("float32", "float16", "bfloat16")
        for form in ("forward", "filters", "filters+alphas", "images", "all")
        for backend in ("cuda", "triton")
    }

    def unit(record, records, size):
        return f"{number(record['ms'])} ({record['floors'] / FORM_BYTES.get(record['form'], 1):.2f})"

    speeds = ", ".join(f"{run} {copy_speed(records):.0f}" for run, records in runs.items())
    return (
        "## adaptive_fuse\n\nMilliseconds of the device and, in brackets, times the floor: the bytes of filters (70 "
        "planes), images and output, read and written once at the speed of a copy in the same run "
        f"(GB/s: {speeds}). Gradients: theirs as well. Two images of one channel, k = 1, 3, 5."
        f"\n\n{by_size(runs, titles, unit)}"
    )


def others(runs) -> str:
    """predict_and_fuse and pyramid_fuse, the same way."""
    titles = {}
    for what in ("predict_and_fuse", "pyramid_fuse"):
        backends = ("cuda", "triton") if what == "pyramid_fuse" else ("cuda", "triton", "filters stored")
        for form in (None,) if what == "predict_and_fuse" else ("forward", "all gradients"):
            for backend in backends:
                facts = {"what": what, "backend": backend} | ({"form": form} if form else {})
                titles[f"{what}{f', {form}' if form else ''}, {backend}"] = facts

    def unit(record, records, size):
        if record.get("form") == "all gradients":
            return number(record["ms"])
        floor = COPY_BYTES[record["what"]] * PIXELS[size] / copy_speed(records) / 1e6
        return f"{number(record['ms'])} ({record['ms'] / floor:.2f})"

    return f"## predict_and_fuse and pyramid_fuse\n\n{by_size(runs, titles, unit)}"


def networks(runs) -> str:
    """Every network on a pair of 551 x 707."""
    names = list(dict.fromkeys(r["name"] for records in runs.values() for r in records if r["what"] == "network"))
    rows = []
    for name in names:
        for run, records in runs.items():
            cells = []
            for tf32 in (True, False):
                plain = find(records, what="network", name=name, tf32=tf32)
                graph = find(records, what="network as a graph", name=name, tf32=tf32)
                cells += [
                    number(plain and plain["called_ms"]),
                    number(plain and plain["ms"]),
                    number(graph and graph["ms"]),
                ]
            if any(cell != "–" for cell in cells):
                rows.append([name, run, *cells])
    head = ["", "run", "as called", "device", "graph", "float32: as called", "device", "graph"]
    large = by_size(
        runs,
        {name: {"what": "network", "name": name} for name in ("FFMEF", "PyramidFFMEF")},
        lambda record, records, size: number(record["ms"]),
    )
    return (
        "## Networks\n\nMilliseconds per pair of luminance (rivals: their own input), 551 × 707; cuDNN with TF32, then "
        f"without.\n\n{table(head, rows)}\n\nLarger pictures, device:\n\n{large}"
    )


def claims(runs) -> str:
    """The share of a rival's time that FFMEF saves, beside the paper's."""
    rows = []
    for (rival, paper), (run, records) in ((c, r) for c in PAPER_CLAIMS.items() for r in runs.items()):
        for tf32 in (True, False):
            theirs = find(records, what="network as a graph", name=rival, tf32=tf32)
            own = [find(records, what="network as a graph", name=name, tf32=tf32) for name in (UNFOLD, OURS)]
            if theirs and all(own):
                saved = [f"{1 - record['ms'] / theirs['ms']:.0%}" for record in own]
                rows.append([rival, run, "TF32" if tf32 else "float32", f"{paper:.0%}", *saved])
    head = ["rival", "run", "cuDNN", "paper", "the release's formulation (unfold)", "ours"]
    return f"## The paper's running time\n\nTime saved, both as CUDA graphs.\n\n{table(head, rows)}" if rows else ""


def pictures(runs) -> str:
    """ffmef.fuse from arrays to array."""
    found = [(run, r) for run, records in runs.items() for r in records if r["what"] == "fuse"]
    rows = [
        [r["model"], r["device"], r["size"], r.get("dtype", "uint8"), run, number(r["ms"]), number(r["first_ms"])]
        for run, r in found
    ]
    return (
        "## Pictures\n\nMilliseconds of `ffmef.fuse` of two arrays in the computer's memory, RGB or grey; the first "
        f"call loads the model.\n\n{table(['model', 'device', 'size', 'samples', 'run', 'ms', 'first call'], rows)}"
        if rows
        else ""
    )


def rest(runs) -> str:
    """All other records as they are."""
    known = {"bandwidth", "adaptive_fuse", "predict_and_fuse", "pyramid_fuse", "network", "network as a graph", "fuse"}
    rows = []
    for run, records in runs.items():
        for record in records:
            if record["what"] not in known:
                said = " ".join(f"{k} {v}" for k, v in record.items() if k != "what" and not isinstance(v, float))
                figures = ", ".join(f"{k} {number(v)}" for k, v in record.items() if isinstance(v, float))
                rows.append([record["what"], said, run, figures])
    return f"## Rivals of the operator, training and more\n\n{table(['', '', 'run', ''], rows)}" if rows else ""


def draw(runs, folder: Path) -> None:
    """Draw the operator against its floor and the networks, of the last run that holds them."""
    import matplotlib

    matplotlib.use("Agg")
    records = [record for run in runs.values() for record in run]
    with matplotlib.rc_context(charts.STYLE):
        figure, axes = charts.new_axes(7.2, 3.6)
        for backend in ("cuda", "triton"):
            for form, style in {"forward": "-", "filters": "--", "images": ":"}.items():
                found = [
                    find(records, what=OPERATOR, backend=backend, form=form, dtype="float32", size=s) for s in SIZES
                ]
                if all(found):
                    colour = charts.COLOURS[backend]
                    axes.plot(
                        SIZES, [r["floors"] for r in found], style, color=colour, marker="o", label=f"{backend}, {form}"
                    )
        axes.axhline(1, color="black", linewidth=1)
        axes.set_ylim(0, None)
        axes.set_ylabel("times the floor")
        axes.set_title("adaptive_fuse and its gradients, float32: 1 is a copy's speed")
        axes.legend(ncols=2)
        charts.save(figure, folder / "operator.png")

        names = {r["name"] for r in records if r["what"] == "network as a graph"}
        found = sorted(
            (find(records, what="network as a graph", name=n, tf32=True) for n in names), key=lambda r: -r["ms"]
        )
        figure, axes = charts.new_axes(7.2, 0.8 + 0.36 * len(found))
        colours = [charts.OWN if "FFMEF" in r["name"] else charts.RIVAL for r in found]
        axes.barh([r["name"] for r in found], [r["ms"] for r in found], color=colours)
        for row, record in enumerate(found):
            axes.annotate(f"{record['ms']:.3g}", (record["ms"], row), (4, 0), textcoords="offset points", va="center")
        charts.logarithmic(axes.xaxis)
        axes.set_xlabel("milliseconds per pair of 551 × 707 as a CUDA graph, cuDNN with TF32 (logarithmic)")
        axes.set_title("Networks")
        charts.save(figure, folder / "networks.png")


if __name__ == "__main__":
    raise SystemExit(main())
