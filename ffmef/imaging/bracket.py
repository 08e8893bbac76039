"""Reads the files of one scene and gives them one white balance, orientation, size, profile, range and depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ffmef.errors import InputError
from ffmef.imaging import formats, metadata
from ffmef.imaging.io import Picture, read_picture, to_depth

_LARGE_FILE = 1 << 20  # bytes; reading a smaller file is faster than starting a thread
_THUMBNAIL = 64
_DARK = 1 / 4  # of the range: 14-bit samples reach no further
_ASPECT_TOLERANCE = 0.1  # sensors of 5:4 and 4:3 differ by 0.065; beyond it, one picture has been cropped
_ASPECT_ROUNDING = 0.02  # what rounding explains
_COLOURED = 0.02  # least mean distance between the channels of a colour picture, as a share of white
_OVERSHOOT = 1e-3  # by which floats may pass black and white without a remark


def read_bracket(
    paths: Sequence[str | os.PathLike],
    task: str = "mef",
    *,
    stretch: bool = False,
    depth: int | None = None,
    read: Callable[..., Picture] = read_picture,
) -> tuple[list[Picture], list[str]]:
    """Read the pictures to be fused and make them comparable.

    - Raw files are developed with the white balance of the first of them.
    - Frames whose EXIF orientation tags differ are taken as stored if that fits the pictures better.
    - For ``vif`` the infrared picture is scaled to the size of the visible one if their shapes agree.
    - ICC profiles that differ from the first colour picture's are converted to it; damaged ones count as none.
    - Samples that use little of their range are stretched if ``stretch`` says so, by one factor for a bracket; floats
      are clipped to [0, 1]. Infrared deeper than 8 bits that uses less than a quarter of its range, and infrared
      beyond it, is always stretched: the 0.1 % and 99.9 % quantiles become black and white.
    - All get the sample type of the deepest.

    Args:
        paths: two or more files; for ``task="vif"`` infrared and visible.
        task: mef, mff or vif.
        stretch: see above.
        depth: 16 to fuse 8-bit pictures at 16 bit, too.
        read: reads one path; takes ``white_balance``.

    Returns:
        The pictures and the remarks: what was guessed, changed or may surprise, one line each.

    Raises:
        InputError: a file cannot be read, sizes differ, or a profile at more than 8 bit needs a missing package.
    """
    names = [str(path) for path in paths]
    pictures = _read_all(paths, read)
    remarks = [f"{name}: {remark}" for name, picture in zip(names, pictures) for remark in picture.remarks]
    raws = [name for name, picture in zip(names, pictures) if picture.white_balance]
    if raws:
        remarks.append(f"raw files are developed with the white balance of {raws[0]}, in sRGB")
    if task != "vif":
        pictures = _orient(pictures, remarks)
        _check_sizes(pictures, names)
        pictures = _convert_profiles(pictures, names, remarks)
    else:
        _note_false_colour(pictures[0], names[0], remarks)
        pictures = _scale_infrared(pictures, names, remarks)
    pictures = [_finite(picture, name) for picture, name in zip(pictures, names)]
    groups = [[0], [1]] if task == "vif" else [list(range(len(pictures)))]
    for group in groups:
        infrared = task == "vif" and group == [0]
        changed = _fit_range([pictures[i] for i in group], [names[i] for i in group], stretch, infrared, remarks)
        for index, picture in zip(group, changed):
            pictures[index] = picture
    return _common_depth(pictures, depth), remarks


def _read_all(paths: Sequence, read: Callable[..., Picture]) -> list[Picture]:
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    first = read(paths[0])
    rest = list(paths[1:])
    # All raw files get the white balance of the first raw file, wherever that is.
    balance = first.white_balance
    if max(sizes, default=0) < _LARGE_FILE or first.format in (*formats.RAW_KINDS, "DNG"):
        pictures = [first]
        for path in rest:
            pictures.append(read(path, white_balance=balance))
            balance = balance or pictures[-1].white_balance
        return pictures
    pictures = [first, *_map_in_threads(lambda path: read(path, white_balance=balance), rest)]
    balances = [picture.white_balance for picture in pictures if picture.white_balance]
    if len(set(balances)) > 1:  # the first raw file is not the first of the bracket
        pictures = [
            read(path, white_balance=balances[0]) if picture.white_balance not in (None, balances[0]) else picture
            for path, picture in zip(paths, pictures)
        ]
    return pictures


def _map_in_threads(function: Callable, items: Sequence) -> list:
    """Apply a function to each item in four threads, or fewer if the system permits no more."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        futures = []
        for item in items:
            try:
                futures.append(pool.submit(function, item))
            except RuntimeError:  # the system permits no further thread
                break
        rest = [function(item) for item in items[len(futures) :]]
        return [*(future.result() for future in futures), *rest]


# Orientation and size


def _orient(pictures: list[Picture], remarks: list[str]) -> list[Picture]:
    """Undo orientation tags that differ although the frames have the same orientation."""
    tags = [picture.orientation for picture in pictures]
    if len(set(tags)) == 1:
        return pictures
    stored = [metadata.turn_back(picture.pixels, picture.orientation) for picture in pictures]
    if len({pixels.shape[:2] for pixels in stored}) > 1:
        return pictures
    counts = Counter(tags)
    common = max(tags, key=lambda tag: counts[tag])  # the first of equally frequent ones
    reference = pictures[tags.index(common)]
    as_stored = list(pictures)
    for index, picture in enumerate(pictures):
        if picture.orientation == common:
            continue
        pixels = metadata.turn(stored[index], common)
        fits = picture.pixels.shape[:2] == reference.pixels.shape[:2]
        if fits and _likeness(picture.pixels, reference.pixels) >= _likeness(pixels, reference.pixels):
            continue
        alpha = picture.alpha
        if alpha is not None:
            alpha = metadata.turn(metadata.turn_back(alpha, picture.orientation), common)
        as_stored[index] = replace(picture, pixels=pixels, alpha=alpha, orientation=common)
    if any(old is not new for old, new in zip(pictures, as_stored)):
        listed = ", ".join(map(str, tags))
        remarks.append(
            f"the EXIF orientation tags differ ({listed}) but the pixels lie alike: "
            f"all frames are turned by tag {common}"
        )
    return as_stored


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Return how similar two pictures are at any exposure: the correlation of the ranks of small versions."""
    ranks = []
    for pixels in (one, other):
        rows = np.linspace(0, pixels.shape[0] - 1, min(_THUMBNAIL, pixels.shape[0])).astype(int)
        columns = np.linspace(0, pixels.shape[1] - 1, min(_THUMBNAIL, pixels.shape[1])).astype(int)
        small = pixels[np.ix_(rows, columns)].astype(np.float64)
        small = small.mean(2) if small.ndim == 3 else small
        _, place, count = np.unique(small, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - count / 2)[place.ravel()])
    if min(np.ptp(values) for values in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _size(picture: Picture) -> str:
    return f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}"


def _check_sizes(pictures: list[Picture], names: list[str]) -> None:
    first = pictures[0]
    for name, picture in zip(names, pictures):
        if picture.pixels.shape[:2] != first.pixels.shape[:2]:
            message = f"{name} must have the size of {names[0]}, {_size(first)} (width x height), got {_size(picture)}"
            if picture.orientation != first.orientation:
                message += f"; their EXIF orientation tags differ: {first.orientation} and {picture.orientation}"
            raise InputError(message)


def _note_false_colour(infrared: Picture, name: str, remarks: list[str]) -> None:
    """Remark that the infrared picture is in colour, perhaps false colour."""
    pixels = infrared.pixels[::4, ::4]
    if pixels.ndim == 3 and pixels.size:
        apart = np.ptp(pixels.astype(np.float64), axis=2).mean()
        if apart > _COLOURED * (1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max):
            remarks.append(
                f"{name}: the infrared picture is in colour and its luminance is fused; in a palette of false colours "
                "that does not always grow with temperature"
            )


def _scale_infrared(pictures: list[Picture], names: list[str], remarks: list[str]) -> list[Picture]:
    infrared, visible = pictures
    if infrared.pixels.shape[:2] == visible.pixels.shape[:2]:
        return pictures
    (height, width), (rows, columns) = visible.pixels.shape[:2], infrared.pixels.shape[:2]
    stretched = abs(np.log(width * rows / (height * columns)))
    if stretched > _ASPECT_TOLERANCE:
        raise InputError(
            f"{names[0]} must have the size or the shape of {names[1]}, {_size(visible)} (width x height), "
            f"got {_size(infrared)}: crop them to one field of view"
        )
    import cv2

    method = cv2.INTER_CUBIC if width >= columns else cv2.INTER_AREA
    alpha = infrared.alpha
    if alpha is not None:
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
    remarks.append(
        f"{names[0]}: scaled from {_size(infrared)} to {_size(visible)}, the size of the visible picture; "
        "one field of view is assumed"
        + (f", though their shapes differ by {np.expm1(stretched):.0%}" if stretched > _ASPECT_ROUNDING else "")
    )
    scaled = cv2.resize(infrared.pixels, (width, height), interpolation=method)
    return [replace(infrared, pixels=scaled, alpha=alpha), visible]


# Colour profiles


def _convert_profiles(pictures: list[Picture], names: list[str], remarks: list[str]) -> list[Picture]:
    coloured = [index for index, picture in enumerate(pictures) if picture.pixels.ndim == 3]
    if len({pictures[index].icc for index in coloured}) < 2:
        return pictures
    first, converted = coloured[0], list(pictures)
    damaged = {profile for profile in {pictures[index].icc for index in coloured} if metadata.is_damaged(profile)}
    for index in coloured:
        if pictures[index].icc in damaged:
            converted[index] = replace(pictures[index], icc=None)
            remarks.append(f"{names[index]}: its ICC profile is damaged and left out: sRGB is assumed")
    target = converted[first].icc
    for index in coloured[1:]:
        picture = converted[index]
        if picture.icc == target:
            continue
        try:
            pixels = metadata.convert_profile(picture.pixels, picture.icc, target)
        except InputError as error:
            raise InputError(f"{names[index]}: {error}") from None
        converted[index] = replace(picture, pixels=pixels, icc=target)
        profiles = f"{metadata.profile_name(picture.icc)} to {metadata.profile_name(target)}"
        remarks.append(f"{names[index]}: colours converted from {profiles}, the profile of {names[first]}")
    return converted


# Range


def _finite(picture: Picture, name: str) -> Picture:
    """Take infinitely bright samples (light sources in OpenEXR) as white; refuse NaN."""
    pixels = picture.pixels
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return picture
    pixels = np.where(np.isposinf(pixels), pixels.dtype.type(1), pixels)
    if not np.isfinite(pixels).all():
        raise InputError(f"{name}: samples must be numbers, got NaN or minus infinity")
    return replace(picture, pixels=pixels)


def _fit_range(
    pictures: list[Picture], names: list[str], stretch: bool, infrared: bool, remarks: list[str]
) -> list[Picture]:
    """Stretch pictures that use little of their range, or remark on it; clip floats."""
    tops = [1 if p.pixels.dtype.kind == "f" else np.iinfo(p.pixels.dtype).max for p in pictures]
    highest = max(float(p.pixels.max()) / top for p, top in zip(pictures, tops))
    lowest = min(float(p.pixels.min()) / top for p, top in zip(pictures, tops))
    deep = all(p.pixels.dtype != np.uint8 for p in pictures)
    who = names[0] if len(names) == 1 else f"{names[0]} and the other frames"
    beyond = lowest < -_OVERSHOOT or highest > 1 + _OVERSHOOT
    if infrared:
        low, high = np.percentile(pictures[0].pixels[::2, ::2], (0.1, 99.9)) / tops[0]
        narrow = deep and high - low < _DARK  # counts of 14 bits or less, hundredths of a kelvin
        if (stretch or beyond or narrow) and high > low:
            remarks.append(
                f"{who}: stretched from {_sample(low, tops[0])} .. {_sample(high, tops[0])} to the whole range"
            )
            return [_rescaled(pictures[0], low, high)]
    elif deep and highest > 0:
        real = tops[0] == 1
        white = highest if real or highest >= _DARK else _white_of_bits(highest)
        if stretch and (beyond or highest < _DARK):
            remarks.append(f"{who}: samples up to {_sample(white, max(tops))} stretched to the whole range")
            pictures = [_rescaled(picture, 0, white) for picture in pictures]
        elif beyond:
            remarks.append(
                f"{who}: samples from {lowest:.4g} to {highest:.4g} are clipped to the range 0 to 1 "
                "(black to white): --stretch scales them"
            )
        elif highest < _DARK:
            remarks.append(
                f"{who}: the brightest sample is {_sample(highest, max(tops))}, {100 * highest:.0f} % of the range"
                f"{_bits(white, real)}: --stretch scales them"
            )
    return [
        replace(p, pixels=np.clip(p.pixels, 0, 1)) if p.pixels.dtype.kind == "f" and (lowest < 0 or highest > 1) else p
        for p in pictures
    ]


def _white_of_bits(highest: float) -> float:
    """Return the white level of 8, 10, 12 or 14-bit samples in a 16-bit file, as a share of 65535."""
    bits = round(highest * 65535).bit_length()
    bits = max(8, bits + bits % 2)
    return (2**bits - 1) / 65535


def _bits(white: float, real: bool) -> str:
    return "" if real else f", as of {round(white * 65535).bit_length()}-bit samples"


def _sample(share: float, top: float) -> str:
    return f"{share:.4g}" if top == 1 else str(round(share * top))


def _rescaled(picture: Picture, low: float, high: float) -> Picture:
    """Return the picture with the shares ``low`` and ``high`` of its range as black and white."""
    pixels = picture.pixels
    top = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    stretched = np.empty_like(pixels)
    for row, source in zip(stretched, pixels):
        values = np.clip((source.astype(np.float64) / top - low) / (high - low), 0, 1) * top
        row[...] = values if top == 1.0 else np.rint(values)
    return replace(picture, pixels=stretched)


def _common_depth(pictures: list[Picture], depth: int | None) -> list[Picture]:
    types = [picture.pixels.dtype for picture in pictures] + ([np.dtype(np.uint16)] if depth == 16 else [])
    dtype = np.dtype(np.float32) if any(t.kind == "f" for t in types) else max(types, key=lambda t: t.itemsize)
    return [
        replace(
            picture,
            pixels=to_depth(picture.pixels, dtype),
            alpha=None if picture.alpha is None else to_depth(picture.alpha, dtype),
        )
        for picture in pictures
    ]
