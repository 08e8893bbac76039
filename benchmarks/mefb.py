"""The 100 sizes of the MEFB benchmark, a sample of them for quick runs, and pictures of these sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES_FILE = Path(__file__).parent / "data" / "mefb_sizes.tsv"
REFERENCE = (551, 707)  # the benchmark's mean height and width
CLASSES = 5
EXTENSIONS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}

Size = tuple[int, int]


def sizes() -> list[Size]:
    """Return height and width of all 100 pairs."""
    _, *rows = SIZES_FILE.read_text().splitlines()
    return [tuple(map(int, row.split("\t"))) for row in rows]


def sample(every: list[Size], classes: int = CLASSES) -> list[Size]:
    """Return one size for each of ``classes`` equal groups by pixel count: the one nearest to its group's mean.

    Every size of the sample stands for equally many pairs, so a plain mean over the sample estimates the mean over all.
    """
    ordered = sorted(every, key=lambda size: (size[0] * size[1], size))
    bounds = [round(index * len(ordered) / classes) for index in range(classes + 1)]
    chosen = []
    for group in (ordered[first:last] for first, last in zip(bounds, bounds[1:])):
        mean = sum(height * width for height, width in group) / len(group)
        chosen.append(min(group, key=lambda size: abs(size[0] * size[1] - mean)))
    return chosen


def bracket(size: Size, seed: int = 0) -> list[np.ndarray]:
    """Return a dark and a bright 8-bit RGB exposure of one smooth made-up scene with some noise."""
    import cv2

    random = np.random.default_rng(seed)
    scene = cv2.resize(random.random((9, 11, 3), np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    scene = np.clip(scene + 0.05 * random.standard_normal(scene.shape, np.float32), 0, 1)
    return [np.rint(255 * np.clip(gain * scene, 0, 1) ** 0.45).astype(np.uint8) for gain in (0.25, 2.0)]


def pictures(folder: Path) -> list[list[np.ndarray]]:
    """Read every NAME/NAME_A.ext and NAME/NAME_B.ext below ``folder`` as 8-bit RGB, the darker one first."""
    import cv2

    pairs = []
    for scene in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [path for path in scene.iterdir() if path.suffix.lower() in EXTENSIONS]
        pair = [next((path for path in files if path.stem == f"{scene.name}_{letter}"), None) for letter in "AB"]
        if None in pair:
            raise FileNotFoundError(f"{scene} has no pair {scene.name}_A, {scene.name}_B")
        images = [cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for path in pair]
        pairs.append(sorted(images, key=np.mean))
    if not pairs:
        raise FileNotFoundError(f"{folder} holds no folders NAME/NAME_A.ext, NAME/NAME_B.ext")
    return pairs
