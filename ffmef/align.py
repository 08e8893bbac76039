"""Aligns hand-held frames to one of them: robust to exposure, to sub-pixel accuracy, by the simplest transform.

A coarse transform comes from features on the exposure-normalised luminance of small versions. Patches refine it at full
size: normalised cross-correlation tells how far each is still off, whatever its exposure. The simplest of translation,
similarity and homography that explains the patches is kept (Bayesian information criterion).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ffmef.errors import InputError
from ffmef.imaging.io import Picture

COARSE_SIDE, FEATURE_SIDE = 1200, 700  # pixels; longest side of the versions for the first patches and for features
PATCH = 64  # pixels
GRID = (12, 16)  # cells, with one patch chosen in each
LEAST_CORRELATION = 0.6  # of a patch that counts
LEAST_PATCHES = 8
CAUTION = 3  # times the criterion's penalty per parameter: the errors of neighbouring patches are alike
STILL = 0.25  # pixels; frames that move less are left as they are: resampling would cost more sharpness
DARK, BRIGHT = 6, 249  # 8-bit levels between which samples hold detail
LARGEST_TURN, LARGEST_SCALE, LEAST_OVERLAP = 20.0, 1.25, 0.4


@dataclass(frozen=True)
class Alignment:
    """How one frame lies against the reference.

    Attributes:
        matrix: (3, 3), maps pixel coordinates (x, y, 1) of the frame to those of the reference.
        kind: none, translation, similarity or homography.
        shift: pixels by which the frame's centre is moved, (x, y).
        turn: degrees by which it is turned, clockwise.
        scale: by which it is enlarged.
        residual: root mean square of how far the patches are still off, in pixels.
        patches: how many of them agree.
    """

    matrix: np.ndarray
    kind: str
    shift: tuple[float, float]
    turn: float
    scale: float
    residual: float
    patches: int


class NotTheSameScene(Exception):
    """Two frames have too little in common."""


def register(frames: Sequence[np.ndarray], reference: int, names: Sequence[str] | None = None) -> list[Alignment]:
    """Return how each frame lies against ``frames[reference]``.

    Each frame is compared with its neighbour in brightness on the way to the reference, so only one exposure step lies
    between the two.

    Args:
        frames: pictures of one size, (H, W) or (H, W, 3); uint8, uint16, or float in [0, 1].
        reference: index of the frame that stays where it is.
        names: what an error calls the frames, besides their numbers.

    Raises:
        InputError: two frames do not show the same scene; the message numbers them from 1.
    """
    views = [_View(_luminance(frame)) for frame in frames]
    order = sorted(range(len(frames)), key=lambda index: (float(views[index].levels.mean()), index))
    place = order.index(reference)
    size = views[0].levels.shape
    found = {reference: _described(np.eye(3), "none", size, 0.0, 0)}
    for steps in (order[place:], order[place::-1]):
        for target, index in itertools.pairwise(steps):
            try:
                matrix, kind, residual, patches = _register_pair(views[index], views[target])
            except (NotTheSameScene, np.linalg.LinAlgError):
                one, other = sorted((index, target))
                called = f": {names[one]} and {names[other]}" if names else ""
                raise InputError(
                    f"frames {one + 1} and {other + 1} do not show the same scene, "
                    f"or too little of it is exposed in both{called}"
                ) from None
            kinds = ("none", "translation", "similarity", "homography")
            kind = max(kind, found[target].kind, key=kinds.index)
            found[index] = _described(found[target].matrix @ matrix, kind, size, residual, patches)
    return [found[index] for index in range(len(frames))]


def best_exposed(frames: Sequence[np.ndarray]) -> int:
    """Return the index of the frame in which most pixels hold detail; samples decide between equal frames."""
    shares = []
    for frame in frames:
        small = _luminance(frame[::4, ::4])
        shares.append(round(float(((small > 4 * DARK) & (small < BRIGHT - 10)).mean()), 3))
    equal = [index for index, share in enumerate(shares) if share == max(shares)]
    return equal[0] if len(equal) == 1 else min(equal, key=lambda index: frames[index].tobytes())


def align_pictures(
    pictures: Sequence[Picture],
    names: Sequence[str],
    reference: int | None = None,
    crop: bool = False,
    fill: bool = False,
) -> tuple[list[Picture], list[str]]:
    """Return the pictures moved onto the reference, and a line about each that was moved.

    A frame becomes transparent where it does not cover the reference; the fusion fills it in from the others. ``crop``
    cuts all pictures to the part that every frame covers.

    Args:
        pictures: of one size.
        names: what the lines call them.
        reference: the frame that stays; None takes the best exposed one.
        crop: see above.
        fill: instead, take from the reference what a frame does not cover: for focus stacks, whose frames look alike.

    Raises:
        InputError: frames do not show the same scene.
    """
    frames = [picture.pixels for picture in pictures]
    reference = best_exposed(frames) if reference is None else reference
    alignments = register(frames, reference, names)
    lines, moved = [f"aligned to {names[reference]}"], []
    for picture, alignment, name in zip(pictures, alignments, names, strict=True):
        moved.append(picture if alignment.kind == "none" else _moved(picture, alignment.matrix))
        if alignment is not alignments[reference]:
            lines.append(f"{name}: {describe(alignment)}")
    if crop:
        rows, columns = common_rectangle([p.alpha for p in moved if p.alpha is not None], frames[0].shape[:2])
        moved = [_cropped(picture, rows, columns) for picture in moved]
        lines.append(f"cropped to {columns.stop - columns.start} x {rows.stop - rows.start}, what every frame covers")
    if fill:
        still = pictures[reference]
        moved = [
            replace(p, pixels=_filled(p, still.pixels), alpha=before.alpha)
            if p.alpha is not None and p.pixels.shape == still.pixels.shape
            else p
            for p, before in zip(moved, pictures, strict=True)
        ]
    return moved, lines


def _filled(picture: Picture, other: np.ndarray) -> np.ndarray:
    missing = np.asarray(picture.alpha == 0)
    return np.where(missing if other.ndim == 2 else missing[..., None], other, picture.pixels)


def describe(alignment: Alignment) -> str:
    """Return one line that says how a frame was moved."""
    if alignment.kind == "none":
        return "not moved"
    x, y = alignment.shift
    text = f"moved by {x:+.2f}, {y:+.2f} pixels"
    if alignment.kind != "translation":
        text += f", turned by {alignment.turn:+.3f} degrees, scaled by {alignment.scale:.5f}"
    return f"{text} ({alignment.kind}, {alignment.patches} patches agree to {alignment.residual:.2f} pixels)"


# The cheap check

_CHECK_SIDE, _CHECK_TILE, _CHECK_GRID = 512, 128, (3, 4)  # samples, and rows and columns of tiles
_CHECK_LEAST, _CHECK_LEAST_SAMPLES = 2.0, 0.6  # shifts below are not clear: pixels, samples of the small versions
_CHECK_SOFT = 3.0  # 8-bit levels; differences well above count alike, so exposure does not matter
_CHECK_PEAK, _CHECK_SURE = 4.5, 7.0  # standard deviations by which a tile's, and the sum's, best shift stands out
_CHECK_AGREE, _CHECK_STILL = 0.6, 0.35  # shares of tiles: at least so many move together, less than so many stand


def apparent_shift(frames: Sequence[np.ndarray]) -> tuple[int, int, float] | None:
    """Return (frame, other frame, pixels) of the largest clear movement between neighbours in brightness, or None.

    Correlates the directions of edges, which no exposure changes, in tiles of small versions: a few milliseconds,
    without OpenCV. The tiles must agree on one shift, turn and scale, so things that move in a still picture do not
    count. The pixels are the mean over the picture. Returns None where it is not sure.
    """
    step = max(1, -(-max(frames[0].shape[:2]) // _CHECK_SIDE))
    small = [_sampled(frame, step) for frame in frames]
    if min(small[0].shape) < 16:
        return None
    order = sorted(range(len(frames)), key=lambda index: (float(small[index].mean()), index))
    edges = {index: _edges(small[index]) for index in order}
    tiles = {index: _tiles(edges[index]) for index in order}
    worst = None
    for one, other in itertools.pairwise(order):
        moved = _movement(tiles[one], tiles[other])
        if moved is None or moved > _CHECK_TILE / 3:  # further, a tile's shift could as well go the other way round
            moved = _far_shift(edges[one], edges[other])
        if moved is None or moved < _CHECK_LEAST_SAMPLES or moved * step < _CHECK_LEAST:
            continue
        if worst is None or moved * step > worst[2]:
            worst = (*sorted((one, other)), moved * step)
    return worst


def _sampled(frame: np.ndarray, step: int) -> np.ndarray:
    """Return 8-bit levels of every ``step``-th row of green or grey, averaged over ``step`` pixels along it."""
    plane = frame[::step, :, 1] if frame.ndim == 3 else frame[::step]
    columns = plane.shape[1] // step
    mean = plane[:, : columns * step].reshape(len(plane), columns, step).mean(2, dtype=np.float32)
    return mean * np.float32({"u1": 1, "u2": 1 / 257}.get(frame.dtype.str[1:], 255))


def _edges(plane: np.ndarray) -> np.ndarray:
    """Return differences along and across the rows (2, H, W), divided by their length; 0 where samples are clipped."""
    edges = np.zeros((2, *plane.shape), np.float32)
    edges[0, 1:-1, 1:-1] = plane[1:-1, 2:] - plane[1:-1, :-2]
    edges[1, 1:-1, 1:-1] = plane[2:, 1:-1] - plane[:-2, 1:-1]
    edges[:, (plane < 3) | (plane > 250)] = 0
    return edges / (np.sqrt(edges[0] ** 2 + edges[1] ** 2) + np.float32(_CHECK_SOFT))


@dataclass(frozen=True)
class _Tiles:
    """Spectra of each tile's two planes; its energy; where its centre lies, as x + i y; the size of all."""

    spectra: list[np.ndarray]
    energy: np.ndarray
    places: np.ndarray
    size: tuple[int, int]


def _tiles(edges: np.ndarray, tile: int = _CHECK_TILE, grid: tuple[int, int] = _CHECK_GRID) -> _Tiles:
    height, width = (min(tile, side) for side in edges.shape[1:])
    window = np.outer(*(np.minimum(1, 4 * np.hanning(n + 2)[1:-1]) for n in (height, width))).astype(np.float32)
    tops = np.linspace(0, edges.shape[1] - height, grid[0]).astype(int)
    lefts = np.linspace(0, edges.shape[2] - width, grid[1]).astype(int)
    spots = list(itertools.product(tops, lefts))
    spectra, energy = [], []
    for top, left in spots:  # one at a time: large arrays would come from fresh memory, which costs more than the work
        cut = edges[:, top : top + height, left : left + width] * window
        energy.append(float(np.vdot(cut, cut)))
        spectra.append(np.fft.rfft2(cut))
    centre = complex(edges.shape[2] - width, edges.shape[1] - height) / 2
    places = np.array([complex(left, top) - centre for top, left in spots])
    return _Tiles(spectra, np.array(energy), places, (height, width))


def _fits(one: _Tiles, other: _Tiles) -> list[np.ndarray]:
    """Return how well each shift (cyclic, row and column) makes each tile of one frame fit the other's."""
    energy = np.maximum(np.sqrt(one.energy * other.energy), 1e-9)
    pairs = zip(one.spectra, other.spectra, energy, strict=True)
    return [np.fft.irfft2((a * np.conj(b)).sum(0), one.size) / np.float32(e) for a, b, e in pairs]


def _best_shift(fits: np.ndarray) -> tuple[complex, float]:
    """Return the best shift in samples, x + i y, and by how many standard deviations it stands out."""
    height, width = fits.shape
    row, column = divmod(int(fits.argmax()), width)
    down = row + _peak(fits[row - 1, column], fits[row, column], fits[(row + 1) % height, column])
    right = column + _peak(fits[row, column - 1], fits[row, column], fits[row, (column + 1) % width])
    right, down = (right + width / 2) % width - width / 2, (down + height / 2) % height - height / 2
    spread = float(fits.std())
    return complex(right, down), float(fits[row, column]) / spread if spread > 1e-9 else 0.0


def _sure_shift(fits: np.ndarray) -> float | None:
    """Return by how many samples a picture is shifted as a whole, or None where no shift stands out."""
    shift, peak = _best_shift(fits)
    return abs(shift) if peak >= _CHECK_SURE else None


def _movement(one: _Tiles, other: _Tiles) -> float | None:
    """Return the mean movement in samples that most tiles agree on (small: the frames stand still), or None."""
    fits = _fits(one, other)
    found = [_best_shift(fit) for fit in fits]
    clear = np.array([peak >= _CHECK_PEAK for _, peak in found])
    least = max(4, _CHECK_AGREE * clear.sum())
    if clear.any():
        places, shifts = one.places[clear], np.array([shift for shift, _ in found])[clear]
        if (np.abs(shifts) < 0.5).mean() >= _CHECK_STILL:
            return 0.0
    if clear.sum() >= least:
        turn, shift, together = _agreement(places, shifts, np.array([peak for _, peak in found])[clear])
        if together >= least:
            return float(np.abs(turn * one.places + shift).mean())
    return _sure_shift(np.sum(fits, 0))  # tiles with little detail may still add up


def _agreement(places: np.ndarray, shifts: np.ndarray, weights: np.ndarray) -> tuple[complex, complex, int]:
    """Return the similarity places -> turn places + shift that most tiles agree on, and how many tiles do.

    Tries the similarity through each pair of tiles.
    """
    first, second = np.triu_indices(len(places), 1)
    gaps = places[second] - places[first]
    turns = (shifts[second] - shifts[first]) / np.where(gaps == 0, 1, gaps)
    turns[(gaps == 0) | (np.abs(turns) > 0.1)] = 0  # hands turn less
    guesses = turns[:, None] * (places - places[first][:, None]) + shifts[first][:, None]
    near = np.abs(guesses - shifts) <= 0.75 + 0.05 * np.abs(shifts)
    inside = near[int((near * weights).sum(1).argmax())]
    places, shifts = places[inside], shifts[inside]
    centred = places - places.mean()
    turn = (np.conj(centred) @ shifts) / max(float((np.abs(centred) ** 2).sum()), 1e-9)
    return turn, shifts.mean() - turn * places.mean(), len(places)


def _far_shift(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return by how many samples two pictures of edges are shifted as a whole, or None where none stands out."""
    rows, columns = (side // 16 * 16 or side for side in one.shape[1:])  # sizes whose transforms are fast
    spectra = [_tiles(edges[:, :rows, :columns], max(rows, columns), (1, 1)) for edges in (one, other)]
    return _sure_shift(_fits(*spectra)[0])


# Luminance


def _luminance(frame: np.ndarray) -> np.ndarray:
    """Return 8-bit levels as float32 (H, W), whatever the depth."""
    import cv2

    scale = {"u1": 1, "u2": 1 / 257}.get(frame.dtype.str[1:], 255)
    grey = frame
    if frame.ndim == 3:
        plain = frame if frame.dtype in (np.uint8, np.uint16) else frame.astype(np.float32)
        grey = cv2.cvtColor(np.ascontiguousarray(plain), cv2.COLOR_RGB2GRAY)
    return grey if frame.dtype == np.uint8 else grey.astype(np.float32) * np.float32(scale)


def _log(levels: np.ndarray) -> np.ndarray:
    """Return levels to which another exposure adds a constant, since display levels are a power of light."""
    return np.log(levels.astype(np.float32) + 4)


def _detail(levels: np.ndarray) -> np.ndarray:
    return (levels > DARK) & (levels < BRIGHT)


# One pair


class _View:
    """A frame's levels, a smaller version, and the features of an even smaller one, found on first use."""

    def __init__(self, levels: np.ndarray):
        self.levels = levels
        self.factor = min(1.0, COARSE_SIDE / max(levels.shape))
        self.small = _shrunk(levels, self.factor)

    @functools.cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 2) in pixels of ``small``, and their descriptors."""
        import cv2

        factor = min(1.0, FEATURE_SIDE / max(self.small.shape))
        view, mask = _equalised(_shrunk(self.small, factor))
        library: Any = cv2  # its annotations lack SIFT
        found, described = library.SIFT_create(2000, contrastThreshold=0.02).detectAndCompute(view, mask)
        if described is None or len(found) < LEAST_PATCHES:
            raise NotTheSameScene
        points = np.array([point.pt for point in found], np.float64)
        return ((points + 0.5) / factor - 0.5).astype(np.float32), described


def _register_pair(frame: _View, target: _View) -> tuple[np.ndarray, str, float, int]:
    """Return the matrix from frame to target, its kind, the residual and the number of patches that agree."""
    import cv2

    if np.array_equal(frame.levels, target.levels):  # works without any detail, too
        return np.eye(3), "none", 0.0, 0
    factor, shrink = frame.factor, _shrinking(frame.factor)
    small, whole = (frame.small, target.small), (frame.levels, target.levels)
    matrix = _coarse(frame, target)
    _check_plausible(matrix, small[0].shape)
    for pair, radius in ((small, 8), (whole, 6), (whole, 3)):
        if radius == 6:  # from here on at full size
            if factor == 1:
                continue
            matrix = np.linalg.inv(shrink) @ matrix @ shrink
        spots = _spots(*small, matrix if radius == 8 else shrink @ matrix @ np.linalg.inv(shrink))
        if radius != 8:
            spots = np.rint((spots + 0.5) / factor - 0.5)
        here, there = _match(*pair, matrix, spots, radius)
        chosen = None
        if len(here) >= max(LEAST_PATCHES, 0.3 * len(spots)):
            chosen = _choose_model(here, there)
        if chosen is None:
            raise NotTheSameScene
        matrix, kind, residual, count = chosen
        _check_plausible(matrix, pair[0].shape)
    corners = _corners(frame.levels.shape)
    moved = cv2.perspectiveTransform(corners[None], matrix)[0]
    if np.abs(moved - corners).max() < STILL:
        return np.eye(3), "none", residual, count
    return matrix, kind, residual, count


def _shrinking(factor: float) -> np.ndarray:
    """Return the matrix from a picture to a smaller version; (x + 0.5) * factor - 0.5 keeps pixel centres."""
    return np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])


def _shrunk(levels: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    size = (max(1, round(levels.shape[1] * factor)), max(1, round(levels.shape[0] * factor)))
    return cv2.resize(levels, size, interpolation=cv2.INTER_AREA) if factor < 1 else levels


def _coarse(frame: _View, target: _View) -> np.ndarray:
    """Return a first matrix between the small versions, by a similarity that most features agree with."""
    import cv2

    points, descriptors = zip(frame.features, target.features, strict=True)
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(*descriptors, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
    if len(good) < LEAST_PATCHES:
        raise NotTheSameScene
    here = points[0][[match.queryIdx for match in good]]
    there = points[1][[match.trainIdx for match in good]]
    cv2.setRNGSeed(1)  # the same frames must give the same result
    similarity, inliers = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=3.0)
    if similarity is None or inliers.sum() < max(LEAST_PATCHES, 0.15 * len(good)):
        raise NotTheSameScene
    return np.vstack([similarity, [0, 0, 1]])


def _equalised(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an 8-bit version with local contrast equalised, and a mask of where it holds detail."""
    import cv2

    mask = _detail(levels)
    logs = _log(levels)
    low, high = np.percentile(logs[mask], (0.5, 99.5)) if mask.any() else (0, 1)
    view = np.clip((logs - low) / max(high - low, 1e-3) * 255, 0, 255).astype(np.uint8)
    view = cv2.createCLAHE(2.0, (8, 8)).apply(view)
    return view, cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8))


def _spots(frame: np.ndarray, target: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return (N, 2) centres of patches in the target: in each cell, the place with most detail in both frames."""
    import cv2

    small_target, small_frame = target, cv2.warpPerspective(frame, matrix, target.shape[::-1], borderValue=0)
    both = (_detail(small_target) & _detail(small_frame)).astype(np.float32)
    side = PATCH // 2
    shares = cv2.boxFilter(both, -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    score = np.minimum(*(_cornerness(levels, side) for levels in (small_target, small_frame)))
    score[shares < 0.97] = 0  # clipped parts pull a match towards where they end
    margin = min(PATCH // 2 + 1, min(score.shape) // 3)
    spots = []
    rows = np.linspace(margin, score.shape[0] - margin, GRID[0] + 1).astype(int)
    columns = np.linspace(margin, score.shape[1] - margin, GRID[1] + 1).astype(int)
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            cell = score[top:bottom, left:right]
            if cell.size and cell.max() > 0:
                y, x = np.unravel_index(cell.argmax(), cell.shape)
                spots.append((left + x, top + y))
    return np.array(spots, float).reshape(-1, 2)


def _cornerness(levels: np.ndarray, side: int) -> np.ndarray:
    import cv2

    return cv2.cornerMinEigenVal(cv2.GaussianBlur(_log(levels), (0, 0), 1.0), side | 1)


def _match(frame, target, matrix, spots: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the frame and where they lie in the target, (N, 2) each, for the patches found again."""
    import cv2

    inverse = np.linalg.inv(matrix)
    half = PATCH // 2
    reach = half + radius + 1
    here, there = [], []
    for x, y in spots:
        if not (half <= x < target.shape[1] - half and half <= y < target.shape[0] - half):
            continue
        x, y = int(x), int(y)
        template = target[y - half : y + half, x - half : x + half]
        # The frame as it would lie over the patch, sampled on the patch's grid.
        local = np.array([[1.0, 0, x - reach], [0, 1, y - reach], [0, 0, 1]])
        window = cv2.warpPerspective(
            frame, inverse @ local, (2 * reach, 2 * reach),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        template, window = (cv2.GaussianBlur(_log(part), (0, 0), 1.0) for part in (template, window))
        if template.std() < 1e-3 or window.std() < 1e-3:
            continue
        scores = cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED)
        _, best, _, (column, row) = cv2.minMaxLoc(scores)
        if best < LEAST_CORRELATION or not (0 < row < scores.shape[0] - 1 and 0 < column < scores.shape[1] - 1):
            continue
        right = column + _peak(*scores[row, column - 1 : column + 2])
        down = row + _peak(*scores[row - 1 : row + 2, round(float(right))])
        offset = np.array([right, down]) - (reach - half)  # where the patch lies in the moved frame
        place = inverse @ [x + offset[0], y + offset[1], 1]
        here.append(place[:2] / place[2])
        there.append((x, y))
    return np.array(here).reshape(-1, 2), np.array(there, float).reshape(-1, 2)


def _peak(before: float, at: float, after: float) -> float:
    """Return where a parabola through three values at -1, 0, 1 is highest."""
    bend = before - 2 * at + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


def _choose_model(here: np.ndarray, there: np.ndarray):
    """Return (matrix, kind, residual, patches) of the simplest model that the points support, or None."""
    fits = []
    for kind, parameters, fit in (
        ("translation", 2, _fit_translation),
        ("similarity", 4, _fit_similarity),
        ("homography", 8, _fit_homography),
    ):
        if len(here) < 2 * parameters:
            continue
        matrix, inside = _robust(fit, here, there)
        if matrix is not None:
            fits.append((kind, parameters, matrix, inside))
    if not fits:
        return None
    # The points that the richest model keeps are the common evidence; the other models must explain them all.
    inside = fits[-1][3]
    if inside.sum() < LEAST_PATCHES or inside.sum() < 0.3 * len(here):
        return None
    scored = []
    for kind, parameters, matrix, _ in fits:
        fit = {"translation": _fit_translation, "similarity": _fit_similarity, "homography": _fit_homography}[kind]
        matrix = fit(here[inside], there[inside])
        errors = _errors(matrix, here[inside], there[inside])
        count = 2 * len(errors)
        variance = float((errors**2).sum()) / count + 0.05**2  # a smaller error does not justify another parameter
        penalty = CAUTION * parameters * np.log(count)
        scored.append((count * np.log(variance) + penalty, kind, matrix, errors))
    _, kind, matrix, errors = min(scored, key=lambda entry: entry[0])
    return matrix, kind, float(np.sqrt((errors**2).mean())), len(errors)


def _robust(fit, here: np.ndarray, there: np.ndarray):
    """Fit, drop points off by more than three robust deviations, and fit again until nothing changes."""
    offsets = there - here
    inside = np.linalg.norm(offsets - np.median(offsets, 0), axis=1) < np.inf
    matrix = None
    for _ in range(10):
        if inside.sum() < LEAST_PATCHES:
            return None, inside
        matrix = fit(here[inside], there[inside])
        errors = _errors(matrix, here, there)
        limit = max(3 * 1.4826 * float(np.median(errors[inside])), 0.15)
        new = errors < limit
        if (new == inside).all():
            break
        inside = new
    return matrix, inside


def _errors(matrix: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    import cv2

    return np.linalg.norm(cv2.perspectiveTransform(here[None], matrix)[0] - there, axis=1)


def _fit_translation(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = (there - here).mean(0)
    return matrix


def _fit_similarity(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return the least-squares similarity: complex numbers z -> a z + b."""
    one, other = here @ [1, 1j], there @ [1, 1j]
    centred = one - one.mean()
    a = (np.conj(centred) @ (other - other.mean())) / (np.conj(centred) @ centred)
    b = other.mean() - a * one.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0, 0, 1]])


def _fit_homography(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    import cv2

    matrix, _ = cv2.findHomography(here, there, 0)
    return np.eye(3) if matrix is None else matrix


def _corners(shape: tuple[int, int]) -> np.ndarray:
    height, width = shape[:2]
    return np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)


def _check_plausible(matrix: np.ndarray, shape: tuple[int, int]) -> None:
    import cv2

    corners = _corners(shape)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1 / LARGEST_SCALE**4:
        raise NotTheSameScene  # of no inverse, or next to none
    moved = cv2.perspectiveTransform(corners[None], matrix)[0].astype(np.float32)
    facts = _described(matrix, "", shape, 0, 0)
    overlap, _ = cv2.intersectConvexConvex(moved, corners.astype(np.float32))
    if (
        abs(facts.turn) > LARGEST_TURN
        or not 1 / LARGEST_SCALE < facts.scale < LARGEST_SCALE
        or overlap < LEAST_OVERLAP * (shape[0] - 1) * (shape[1] - 1)
    ):
        raise NotTheSameScene


def _described(matrix: np.ndarray, kind: str, shape: tuple[int, int], residual: float, patches: int) -> Alignment:
    """Return an alignment with the shift, turn and scale at the centre of the picture."""
    centre = (np.array(shape[1::-1]) - 1) / 2
    ends = np.array([centre, centre + np.array([1, 0]), centre + np.array([0, 1])])
    placed = np.c_[ends, np.ones(3)] @ matrix.T
    placed = placed[:, :2] / placed[:, 2:]
    x, y = placed[1] - placed[0], placed[2] - placed[0]
    right, down = placed[0] - centre
    turn = float(np.degrees(np.arctan2(x[1] - y[0], x[0] + y[1])))
    scale = float(np.sqrt(abs(x[0] * y[1] - x[1] * y[0])))
    return Alignment(matrix, kind, (float(right), float(down)), turn, scale, residual, patches)


# Moving


def _moved(picture: Picture, matrix: np.ndarray) -> Picture:
    """Return the picture as it lies over the reference, transparent where it does not reach."""
    import cv2

    height, width = picture.pixels.shape[:2]
    dtype = picture.pixels.dtype
    top = 1 if dtype.kind == "f" else np.iinfo(dtype).max
    flags = cv2.INTER_CUBIC
    pixels = cv2.warpPerspective(picture.pixels, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if dtype.kind == "f":
        pixels = np.clip(pixels, 0, 1)
    alpha = np.full((height, width), top, dtype) if picture.alpha is None else picture.alpha
    alpha = cv2.warpPerspective(alpha, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    if picture.alpha is None:
        alpha = np.where(alpha < top, 0, alpha).astype(dtype)  # a pixel is either covered or not
    return replace(picture, pixels=pixels, alpha=alpha)


def _cropped(picture: Picture, rows: slice, columns: slice) -> Picture:
    alpha = picture.alpha
    if alpha is not None:
        alpha = np.ascontiguousarray(alpha[rows, columns])
        top = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
        alpha = None if (alpha == top).all() else alpha
    return replace(picture, pixels=np.ascontiguousarray(picture.pixels[rows, columns]), alpha=alpha)


def common_rectangle(alphas: Sequence[np.ndarray], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return rows and columns of a large rectangle in which every alpha is above zero.

    >>> hole = np.ones((6, 8), np.uint8)
    >>> hole[:2] = 0
    >>> hole[5, 7] = 0
    >>> common_rectangle([hole], (6, 8))
    (slice(2, 6, None), slice(0, 7, None))
    """
    missing = np.zeros(shape, bool)
    for alpha in alphas:
        missing |= alpha == 0
    sums = np.pad(missing.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def share(top: int, bottom: int, left: int, right: int) -> float:
        area = max((bottom - top) * (right - left), 1)
        return (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / area

    top, bottom, left, right = 0, shape[0], 0, shape[1]
    while bottom - top > 1 and right - left > 1 and share(top, bottom, left, right) > 0:
        # Drop the side with the largest share of missing pixels.
        sides = [
            share(top, top + 1, left, right), share(bottom - 1, bottom, left, right),
            share(top, bottom, left, left + 1), share(top, bottom, right - 1, right),
        ]  # fmt: skip
        worst = int(np.argmax(sides))
        if sides[worst] == 0:  # a hole inside: the sides do not tell where
            worst = 0 if bottom - top >= right - left else 2
        top, bottom = top + (worst == 0), bottom - (worst == 1)
        left, right = left + (worst == 2), right - (worst == 3)
    return slice(top, bottom), slice(left, right)
