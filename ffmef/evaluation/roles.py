"""Tells from the names of files and folders which frame of a scene a picture is."""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from pathlib import Path

_SOURCE_WORDS = ("source", "src", "image", "img", "input", "frame", "exposure", "focus", "picture", "photo")


@dataclass(frozen=True)
class Family:
    """Roles that belong together, in the order in which the toolkits pass them, each with its spellings."""

    label: str
    roles: tuple[tuple[str, ...], ...]

    def names(self, count: int | None = 2) -> list[str]:
        """Return the usual name of each role, by default those of a pair."""
        return [spellings[0] for spellings in self.roles[:count]]


FAMILIES = (
    Family("sources", tuple((letter,) for letter in string.ascii_uppercase)),
    Family(
        "visible and infrared",
        (
            ("VI", "vis", "visible", "rgb", "color", "colour", "optical", "eo"),
            ("IR", "inf", "infrared", "thermal", "lwir", "mwir", "swir", "nir", "tir"),
        ),
    ),
    Family(
        "exposures",
        (
            ("under", "underexposed", "underexposure", "ue", "dark", "low"),
            ("over", "overexposed", "overexposure", "oe", "bright", "high"),
            ("middle", "mid", "normal"),
        ),
    ),
    Family("foci", (("near", "foreground"), ("far", "background"))),
    Family("numbered sources", tuple(tuple(f"{word}{n}" for word in (*_SOURCE_WORDS, "im")) for n in range(1, 10))),
)
INFRARED = FAMILIES[1]
EXPECTED = (
    "NAME/NAME_A.ext and NAME/NAME_B.ext (or _VI and _IR, _under and _over, _near and _far), "
    "folders VI/ and IR/ (A/ and B/, under/ and over/, near/ and far/) of pictures with equal names, "
    "pictures NAME_A.ext and NAME_B.ext in one folder, or a table (CSV) of their files"
)
_COPY = re.compile(r"(?: - (?:copy|kopie|copie|副本)(?: ?\(\d+\))?|[ _]?\(\d+\))$", re.IGNORECASE)
_SPELLINGS = {
    (family, spelling.casefold()): index
    for family in FAMILIES
    for index, spellings in enumerate(family.roles)
    for spelling in spellings
}
_SEPARATORS = " _-."
_LETTERED = re.compile(
    rf"(?:(?i:{'|'.join(_SOURCE_WORDS)})[ _\-]*)([A-H])|(?i:{'|'.join(_SOURCE_WORDS)})[ _\-]+([a-h])"
)
_AT_THE_BEGINNING = (
    re.compile(r"([a-z]{2,})[ _\-]*(\d.*)$", re.IGNORECASE), re.compile(r"([a-z]+\d?)[ _\-]+(.+)$", re.IGNORECASE),
)  # fmt: skip
_JOINED = re.compile(r"(.*[a-z0-9])([A-H])")  # houseA, c2B
_JOINT = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # between the words of IRImages
_COLUMN_WORDS = re.compile(r"(?<![a-z])(?:files?|paths?|file ?names?|names?)(?![a-z])", re.IGNORECASE)


def folded(text: str) -> str:
    """Return a name in the form used for comparison, without differences of case and of Unicode's forms of accents."""
    return unicodedata.normalize("NFC", text).casefold()


def without_copy_mark(stem: str) -> str:
    """Return a name without what file managers append to copies.

    >>> without_copy_mark("street - Copy"), without_copy_mark("street (2)"), without_copy_mark("street")
    ('street', 'street', 'street')
    """
    return _COPY.sub("", stem)


def split(stem: str, family: Family) -> tuple[str, int] | None:
    """Return a file's name without its role, and the role's number; None if it names no role.

    The role stands at the end, after a separator; or at the beginning, before a separator or a number; or is a capital
    letter at the end. Case does not matter otherwise.

    >>> split("Lighthouse_a", FAMILIES[0]), split("IR12", INFRARED), split("camera", FAMILIES[0])
    (('Lighthouse', 0), ('12', 1), None)
    >>> split("vis_street", INFRARED), split("houseB", FAMILIES[0])
    (('street', 0), ('house', 1))
    """
    role = _SPELLINGS.get((family, stem.casefold()))
    if role is not None:
        return "", role
    for place in range(len(stem) - 1, 0, -1):
        if stem[place - 1] in _SEPARATORS:
            role = _SPELLINGS.get((family, stem[place:].casefold()))
            if role is not None and stem[:place].strip(_SEPARATORS):
                return stem[:place].rstrip(_SEPARATORS), role
    for form in _AT_THE_BEGINNING:
        start = form.match(stem)
        if start is None:
            continue
        role = _SPELLINGS.get((family, start[1].casefold()))
        if role is not None:
            return start[2], role
    joined = _JOINED.fullmatch(stem) if family is FAMILIES[0] else None
    return (joined[1], _SPELLINGS[family, joined[2].casefold()]) if joined else None


def of_folder(name: str, family: Family) -> int | None:
    """Return the role that a folder's name states, or None.

    >>> of_folder("imageA", FAMILIES[0]), of_folder("source_b", FAMILIES[0]), of_folder("images", FAMILIES[0])
    (0, 1, None)
    >>> of_folder("Vis", INFRARED), of_folder("cropinfrared", INFRARED), of_folder("results", INFRARED)
    (0, 1, None)
    >>> of_folder("VisibleImages", INFRARED), of_folder("IRImages", INFRARED), of_folder("irrigation", INFRARED)
    (0, 1, None)
    """
    lettered = _LETTERED.fullmatch(name) if family is FAMILIES[0] else None
    if lettered:
        return _SPELLINGS[family, (lettered[1] or lettered[2]).casefold()]
    plain = name.casefold()
    for text in (plain, re.sub(r"[ _\-]", "", plain)):
        role = _SPELLINGS.get((family, text))
        if role is not None:
            return role
    # In a scene's name, such as LowTide, joined words are no role.
    words = re.split(r"[^a-z0-9]+", (_JOINT.sub(" ", name) if family is INFRARED else name).casefold())
    found = {
        index
        for (own, spelling), index in _SPELLINGS.items()
        if own is family
        and len(spelling) > 1
        and (spelling in words or (len(spelling) > 5 and plain.endswith(spelling)))
    }
    return found.pop() if len(found) == 1 else None


def of_column(title: str, family: Family) -> int | None:
    """Return the role that the title of a table's column states, or None.

    >>> of_column("Image A path", FAMILIES[0]), of_column("vis_file", INFRARED), of_column("2", FAMILIES[-1])
    (0, 0, 1)
    """
    plain = _COLUMN_WORDS.sub("", title.replace("_", " ")).strip(_SEPARATORS)
    if family is FAMILIES[-1] and plain.isdecimal():
        plain = f"image{int(plain)}"
    return of_folder(plain, family)


def is_infrared(path: Path) -> bool:
    """Return whether a picture, or a folder on its path from the data set down, is named as infrared.

    >>> is_infrared(Path("IR/man.png")), is_infrared(Path("x_ir.png")), is_infrared(Path("B/man.png"))
    (True, True, False)
    """
    parts = split(path.stem, INFRARED)
    return (parts is not None and parts[1] == 1) or any(of_folder(up.name, INFRARED) == 1 for up in path.parents)
