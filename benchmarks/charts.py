"""The charts of the report, one function each; every function returns False if its records are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import bandwidth, memory, pixels

OWN, RELEASE, RIVAL = "#1668b0", "#a9c8e6", "#9aa5b1"
COLOURS = {
    "cpu": OWN,
    "fused": OWN,
    "triton": "#17a2b8",
    "cuda": "#0b3d66",
    "floor": "black",
    "unfold": "#d98c1f",
    "unfold-compiled": "#e8c07d",
    "shift-and-add": "#2e8b57",
    "shift-and-add-compiled": "#93c9a8",
    "reference": "#a83232",
    "eager": "#7b5ea7",
    "compiled": "#2e8b57",
    "pyramid": "#a83232",
}
STYLE = {
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def draw_all(records: list[dict], folder: Path) -> list[str]:
    """Draw every chart that the records allow and return the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, draw in CHARTS.items():
            if draw(records, folder / f"{name}.png"):
                drawn.append(f"{name}.png")
    return drawn


def running_time(records: list[dict], path: Path) -> bool:
    """The paper's figure: one bar per method, logarithmic, ours in colour."""
    pairs = sorted((record for record in records if record["subject"] == "mefb"), key=lambda record: -record["pair_s"])
    if not pairs:
        return False
    figure, axes = new_axes(7.2, 0.8 + 0.36 * len(pairs))
    released = ("FFMEF (unfold)", "FFMEF (eager)")
    colours = [
        RELEASE if record["provider"] in released else OWN if "FFMEF" in record["provider"] else RIVAL
        for record in pairs
    ]
    labels = [record["provider"] + (" *" if record["kind"] == "picture" else "") for record in pairs]
    milliseconds = [1e3 * record["pair_s"] for record in pairs]
    axes.barh(labels, milliseconds, color=colours)
    for row, value in enumerate(milliseconds):
        text = f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.3g} ms"
        axes.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center")
    logarithmic(axes.xaxis)
    axes.set_xlim(min(milliseconds) / 2, max(milliseconds) * 4)
    axes.set_xlabel("milliseconds per pair, one CPU thread (logarithmic)")
    axes.set_title("Mean time per pair over MEFB's sizes      * from pictures to picture")
    return save(figure, path)


def roofline(records: list[dict], path: Path) -> bool:
    """Bytes per second that each provider of the operator achieves, under the same run's copy and read bandwidth."""
    cases = [record for record in records if record.get("operator") == "adaptive_fuse" and record["dtype"] == "float32"]
    cases = [
        record
        for record in cases
        if record["threads"] == 1 and record["step"] in ("forward", "both") and record.get("bytes_moved")
    ]
    roofs = {
        record["provider"]: record for record in records if record["subject"] == "bandwidth" and record["threads"] == 1
    }
    if not cases or not roofs:
        return False
    groups = sorted(
        {key(record) for record in cases},
        key=lambda group: (group[0] != "forward", group[1], group[2], sum(size**2 for size in group[3])),
    )
    providers = list(dict.fromkeys(record["provider"] for record in cases))
    figure, axes = new_axes(9, 4.6)
    for provider in providers:
        own = {key(record): bandwidth(record) / 1e9 for record in cases if record["provider"] == provider}
        places = [place for place, group in enumerate(groups) if group in own]
        axes.plot(
            places,
            [own[groups[place]] for place in places],
            "_" if provider == "floor" else "o",
            markersize=8,
            markeredgewidth=2 if provider == "floor" else 0,
            color=COLOURS.get(provider, RIVAL),
            label=provider,
        )
    for name, style in (("read", "-"), ("copy", "--")):
        if name in roofs:
            roof = bandwidth(roofs[name]) / 1e9
            axes.axhline(roof, color="black", linestyle=style, linewidth=1, label=f"measured {name}: {roof:.1f} GB/s")
    logarithmic(axes.yaxis)
    axes.set_ylabel("GB/s of unavoidable traffic, one thread")
    axes.set_xticks(range(len(groups)), [describe(*group) for group in groups], rotation=35, ha="right", fontsize=8)
    axes.set_title("adaptive_fuse, float32, under the memory bandwidth of the same run")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return save(figure, path)


def key(record: dict) -> tuple:
    return record["step"], pixels(record), record["images"], tuple(record["kernel_sizes"])


def describe(step: str, count: int, images: int, kernel_sizes: Sequence[int]) -> str:
    return f"{step}, {count / 1e6:.2g} Mpx\nN={images}, k={','.join(map(str, kernel_sizes))}"


def against_size(field: str):
    """Return a chart function for the time or the memory per pixel as the picture grows."""

    def draw(records: list[dict], path: Path) -> bool:
        cases = [record for record in records if record.get("chart") == "size" and record["threads"] == 1]
        if field == "memory":
            cases = [record for record in cases if memory(record)]
        if len({pixels(record) for record in cases}) < 2:
            return False
        figure, axes = new_axes(6.4, 3.8)
        for provider in dict.fromkeys(record["provider"] for record in cases):
            own = sorted((record for record in cases if record["provider"] == provider), key=pixels)
            values = [record["median_s"] * 1e9 if field == "time" else memory(record) for record in own]
            axes.plot(
                [pixels(record) / 1e6 for record in own],
                [value / pixels(record) for value, record in zip(values, own)],
                "o-",
                color=COLOURS.get(provider, RIVAL),
                label=provider,
            )
        logarithmic(axes.xaxis)
        logarithmic(axes.yaxis)
        axes.set_xlabel("megapixels")
        axes.set_ylabel("nanoseconds per pixel" if field == "time" else "bytes per pixel beyond the inputs")
        axes.set_title(
            ("Time" if field == "time" else "Peak memory") + " of the model per pixel, one thread: flat is ideal"
        )
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        return save(figure, path)

    return draw


def new_axes(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def logarithmic(axis) -> None:
    """Scale an axis by powers of ten and label it with plain numbers."""
    from matplotlib.ticker import FuncFormatter

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.axes.grid(axis=axis.axis_name, which="major", linewidth=0.4, color="#d5dae0")
    axis.axes.set_axisbelow(True)


def save(figure, path: Path) -> bool:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return True


CHARTS = {
    "running_time": running_time,
    "roofline": roofline,
    "time_against_size": against_size("time"),
    "memory_against_size": against_size("memory"),
}
