"""Reads from the names of files and folders which frame of a scene a picture is."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Roles that belong together, in the order in which the toolkits pass them, each with its spellings."""

    label: str
    roles: tuple[tuple[str, ...], ...]

    def names(self, count: int | None = 2) -> list[str]:
        """Return the usual name of each role, those of a pair unless more are asked for."""
        return [spellings[0] for spellings in self.roles[:count]]


FAMILIES = (
    Family("sources", tuple((letter,) for letter in string.ascii_uppercase)),
    Family(
        "visible and infrared",
        (("VI", "vis", "visible", "rgb"), ("IR", "inf", "infrared", "thermal", "lwir")),
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
    Family(
        "numbered sources", tuple((f"source{n}", f"image{n}", f"img{n}", f"im{n}", f"input{n}") for n in range(1, 10))
    ),
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


def without_copy_mark(stem: str) -> str:
    """Return a name without what file managers append to copies.

    >>> without_copy_mark("street - Copy"), without_copy_mark("street (2)"), without_copy_mark("street")
    ('street', 'street', 'street')
    """
    return _COPY.sub("", stem)


def split(stem: str, family: Family) -> tuple[str, int] | None:
    """Return what a file's name says beside its role, and the role's number; None where it names no role.

    The role stands at the end, after a separator, or before a number at the beginning. Case does not matter.

    >>> split("Lighthouse_a", FAMILIES[0]), split("IR12", INFRARED), split("camera", FAMILIES[0])
    (('Lighthouse', 0), ('12', 1), None)
    """
    role = _SPELLINGS.get((family, stem.casefold()))
    if role is not None:
        return "", role
    for place in range(len(stem) - 1, 0, -1):
        if stem[place - 1] in _SEPARATORS:
            role = _SPELLINGS.get((family, stem[place:].casefold()))
            if role is not None and stem[:place].strip(_SEPARATORS):
                return stem[:place].rstrip(_SEPARATORS), role
    start = re.match(r"([a-z]{2,})[ _\-]*(\d.*)$", stem, re.IGNORECASE)
    if start:
        role = _SPELLINGS.get((family, start[1].casefold()))
        if role is not None:
            return start[2], role
    return None


def of_folder(name: str, family: Family) -> int | None:
    """Return the role that a folder's name states, or None.

    >>> of_folder("Vis", INFRARED), of_folder("cropinfrared", INFRARED), of_folder("results", INFRARED)
    (0, 1, None)
    """
    plain = name.casefold()
    for text in (plain, re.sub(r"[ _\-]", "", plain)):
        role = _SPELLINGS.get((family, text))
        if role is not None:
            return role
    found = {
        index
        for (own, spelling), index in _SPELLINGS.items()
        if own is family
        and len(spelling) > 1
        and (spelling in re.split(r"[^a-z0-9]+", plain) or (len(spelling) > 5 and plain.endswith(spelling)))
    }
    return found.pop() if len(found) == 1 else None
