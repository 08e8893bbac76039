"""Writes scores and pictures as one HTML page that needs no network."""

from __future__ import annotations

import base64
import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ffmef.evaluation import statistics
from ffmef.evaluation.found import Pair
from ffmef.evaluation.report import Report, best, fault_cell, label, show, statistics_tables, write_whole
from ffmef.metrics.registry import METRICS


def _embedded(path: Path, longest_side: int) -> str:
    from PIL import Image

    picture = Image.fromarray(_shown(path))
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(path: Path) -> np.ndarray:
    """Return a picture in 8 bits; counts that use little of their range, as from infrared cameras, are stretched."""
    from ffmef.imaging.io import read_picture, to_depth

    pixels = read_picture(path).pixels
    if pixels.dtype == np.uint8:
        return pixels
    top = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    low, high = np.percentile(pixels, (0.1, 99.9)) / top
    if high > low and (high - low < 0.25 or low < 0 or high > 1):
        return to_depth(((pixels / top - low) / (high - low)).astype(np.float32), np.uint8)
    return to_depth(pixels, np.uint8)


def frame_name(pair: Pair, path: Path) -> str:
    """Return what tells a frame from the others of its pair: its name without the pair's, or its folder's name."""
    stems = [frame.stem for frame in pair.frames]
    if stems.count(path.stem) > 1:
        return path.parent.name
    rest = path.stem[len(pair.name) + 1 :]
    return rest if path.stem.casefold() == f"{pair.name}_{rest}".casefold() else path.stem


def write_page(report: Report, path: Path, longest_side: int) -> None:
    """Write the page; pictures are embedded with sides of at most ``longest_side`` pixels."""
    import jinja2

    higher = {name: METRICS[name].higher_is_better for name in report.metrics}
    badness = statistics.badness(report.scores, higher)
    scenes: list[dict[str, Any]] = []
    for pair in report.pairs:
        values = {m: report.scores[m][pair.name] for m in report.methods if pair.name in report.scores.get(m, {})}
        if not values:
            continue  # listed among the failures; its pictures may be broken
        pictures = {frame_name(pair, path): path for path in pair.frames}
        pictures |= {method: report.fused[method][pair.name] for method in values}
        scenes.append(
            {
                "name": pair.name,
                "badness": badness.get(pair.name, 0.0),
                "pictures": [(name, _embedded(file, longest_side)) for name, file in pictures.items()],
                "scores": [(m, _cells(v, list(values.values()), report.metrics)) for m, v in values.items()],
            }
        )
    scenes.sort(key=lambda scene: (-scene["badness"], scene["name"]))
    rows = report.rows()
    averages = [(method, _cells(values, [v for _, v in rows], report.metrics)) for method, values in rows]
    template = resources.files("ffmef.evaluation").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(
        report=report,
        labels=[label(name) for name in report.metrics],
        higher=[higher[name] for name in report.metrics],
        averages=averages,
        scenes=scenes,
        tables=statistics_tables(report),
        fault_cell=fault_cell,
    )
    write_whole(path, lambda file: file.write(html))


def _cells(values: dict[str, float | None], rows: list[dict[str, float | None]], metrics: list[str]) -> list:
    """Return the text of each value and whether it is the best in its column."""
    leading = {name: best([row.get(name) for row in rows], name) for name in metrics}
    texts = [show(values.get(name)) for name in metrics]
    return [(text, text == show(leading[name]) != show(None)) for text, name in zip(texts, metrics, strict=True)]
