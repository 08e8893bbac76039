"""What a file says about its pixels: orientation, EXIF and ICC profile."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from ffmef.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION, EXIF_IFD, GPS_IFD = 274, 34665, 34853
# Tags that describe the photograph. The rest of a TIFF directory describes the file, which is not kept.
_DESCRIPTIVE_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432}
_MAKER_NOTE, _EXIF_WIDTH, _EXIF_HEIGHT, _INTEROP_IFD = 37500, 40962, 40963, 40965
_QUARTER_TURNS = (5, 6, 7, 8)


def turn(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Return the samples upright, given EXIF orientation 1 to 8."""
    if orientation in _QUARTER_TURNS:
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


def turn_back(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Undo :func:`turn`. Each turn is its own inverse, except for the quarter turns, which are each other's."""
    return turn(samples, {6: 8, 8: 6}.get(orientation, orientation))


def tiff_exif(data: bytes) -> Image.Exif:
    """Return the tags of the first directory of a TIFF file of any sample type."""
    from PIL import Image

    exif = Image.Exif()
    exif.load_from_fp(io.BytesIO(data))
    return exif


def read_exif(load) -> tuple[int, bytes | None]:
    """Return the orientation, and a clean EXIF block without orientation, thumbnail and maker notes.

    Args:
        load: returns the tags, a ``PIL.Image.Exif``. Damaged EXIF is dropped: the picture is still good.
    """
    from PIL import Image

    try:
        source = load()
        orientation = source.get(ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        clean = Image.Exif()
        for tag in _DESCRIPTIVE_TAGS & set(source):
            clean[tag] = source[tag]
        details = dict(source.get_ifd(EXIF_IFD))
        # Maker notes hold absolute offsets, which are wrong once moved; the interoperability directory likewise.
        details.pop(_MAKER_NOTE, None)
        details.pop(_INTEROP_IFD, None)
        if orientation in _QUARTER_TURNS and {_EXIF_WIDTH, _EXIF_HEIGHT} <= set(details):
            details[_EXIF_WIDTH], details[_EXIF_HEIGHT] = details[_EXIF_HEIGHT], details[_EXIF_WIDTH]
        if details:
            clean.get_ifd(EXIF_IFD).update(details)
        place = dict(source.get_ifd(GPS_IFD))
        if place:
            clean.get_ifd(GPS_IFD).update(place)
        return orientation, (clean.tobytes() if len(clean) or details or place else None)
    except Exception:  # EXIF is damaged in as many ways as there are cameras
        return 1, None


def fitting_profile(profile: bytes | None, pixels: np.ndarray) -> bytes | None:
    """Keep a profile only if its colour space is that of the pixels: a CMYK profile says nothing about RGB."""
    space = b"RGB " if pixels.ndim == 3 else b"GRAY"
    return profile if profile and profile[16:20] == space else None


def profile_remarks(image: Image.Image) -> tuple[str, ...]:
    """Return a remark if the profile that Pillow read with a picture cannot be used."""
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        if _cmyk_profile(profile) is None:
            return ("CMYK without a usable ICC profile is converted by a plain formula: its colours are a guess",)
        return ()
    space = bytes(profile or b"")[16:20]
    grey = image.mode in ("1", "L", "LA", "La", "I;16")
    if not profile or space == b"RGB " or (grey and space == b"GRAY"):
        return ()
    return ("its ICC profile is damaged or of another colour space and left out: sRGB is assumed",)


def _cmyk_profile(profile: bytes | None):
    from PIL import ImageCms

    if not profile or profile[16:20] != b"CMYK":
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError):
        return None


def is_damaged(profile: bytes | None) -> bool:
    """Return whether LittleCMS cannot convert RGB from a profile."""
    if profile is None:
        return False
    try:
        convert_profile(np.zeros((1, 1, 3), np.uint8), profile, None)
    except InputError:
        return True
    return False


def from_cmyk(image: Image.Image) -> Image.Image:
    """Return a CMYK picture as sRGB by its profile, or by Pillow's plain formula if it has no usable profile."""
    from PIL import ImageCms

    profile = _cmyk_profile(image.info.get("icc_profile"))
    if profile is None:
        return image.convert("RGB")
    flags, intent = ImageCms.Flags.BLACKPOINTCOMPENSATION, ImageCms.Intent.RELATIVE_COLORIMETRIC
    screen = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, screen, intent, outputMode="RGB", flags=flags)
    assert converted is not None  # it is None only when Pillow converts in place
    return converted


def profile_name(profile: bytes | None) -> str:
    """Return what a profile calls itself; a picture without one counts as sRGB."""
    from PIL import ImageCms

    if profile is None:
        return "sRGB"
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except ImageCms.PyCMSError:
        return "unnamed"
    return re.sub(r"\s+", " ", name).strip() or "unnamed"


def convert_profile(pixels: np.ndarray, source: bytes | None, target: bytes | None) -> np.ndarray:
    """Return RGB pixels of the profile ``source`` as those of ``target`` (None: sRGB), relative colorimetric.

    LittleCMS converts: 8 bit through Pillow, other depths through imagecodecs, because Pillow supports 8 bit only.

    Raises:
        InputError: a profile is damaged, or imagecodecs is needed and missing.
    """
    from PIL import Image, ImageCms

    flags, intent = ImageCms.Flags.BLACKPOINTCOMPENSATION, ImageCms.Intent.RELATIVE_COLORIMETRIC
    profiles = [
        profile or ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() for profile in (source, target)
    ]
    if pixels.dtype == np.uint8:
        try:
            own, wanted = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in profiles)
            converted = ImageCms.profileToProfile(Image.fromarray(pixels), own, wanted, intent, flags=flags)
        except (ImageCms.PyCMSError, OSError) as error:
            raise InputError(f"its ICC profile cannot be used: {' '.join(str(error).split())}") from None
        return np.array(converted)
    try:
        import imagecodecs
    except ImportError:
        raise InputError(
            "converting an ICC profile at more than 8 bit needs imagecodecs: pip install 'ffmef[formats]'"
        ) from None
    try:
        return imagecodecs.cms_transform(
            np.ascontiguousarray(pixels), *profiles, colorspace="rgb", outcolorspace="rgb", intent=intent, flags=flags
        )
    except Exception as error:
        raise InputError(f"its ICC profile cannot be used: {' '.join(str(error).split())}") from None
