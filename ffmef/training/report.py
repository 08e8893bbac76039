"""What a run reports: a table of losses, TensorBoard events, sample pictures, and a plot at the end."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from ffmef import files


class LossTable:
    """The mean losses of each epoch as ``losses.csv``: epoch, step, rate, total, the terms, and the validation's total.

    Args:
        folder: of the run.
        epoch: rows of this epoch and later are dropped, because a resumed run writes them again.
    """

    def __init__(self, folder: Path, epoch: int = 0):
        self._path = folder / "losses.csv"
        self.rows: list[dict[str, str]] = []
        if epoch and self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]

    def add(self, **values: float) -> None:
        """Append a row and write the table."""
        self.rows.append({name: f"{value:.6g}" for name, value in values.items()})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write(self._path, text.getvalue())

    def plot(self, path: Path) -> None:
        """Draw all losses over the epochs, each in its own panel."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = [name for name in self.rows[-1] if name not in ("epoch", "step", "rate", "validation")]
        figure = Figure(figsize=(3.2 * min(4, len(names)), 2.4 * -(-len(names) // 4)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(-(-len(names) // 4), min(4, len(names)), squeeze=False).ravel()
        for axis in axes[len(names) :]:
            axis.remove()
        for axis, name in zip(axes, names):
            self._draw(axis, name, "training")
            if name == "total":
                self._draw(axis, "validation", "validation")
                axis.legend(fontsize=7)
            axis.set_title(name.replace("_", " "), fontsize=9)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        image = io.BytesIO()
        figure.supxlabel("epoch", fontsize=8)
        figure.savefig(image, dpi=100)
        files.write(path, image.getvalue())

    def _draw(self, axis, name: str, label: str) -> None:
        points = [(int(row["epoch"]) + 1, float(row[name])) for row in self.rows if row.get(name)]
        if points:
            axis.plot(*zip(*points), label=label, linewidth=1)


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Return pictures (H, W, 3) in rows on white, each row as high as its tallest picture."""
    lines = []
    for row in rows:
        height = max(picture.shape[0] for picture in row)
        cells = [np.pad(p, ((0, height - p.shape[0]), (0, gap), (0, 0)), constant_values=255) for p in row]
        lines.append(np.concatenate(cells, 1))
    width = max(line.shape[1] for line in lines)
    return np.concatenate(
        [np.pad(line, ((0, gap), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    )
