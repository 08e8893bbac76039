"""What a photographer can change in the model's result: brightness, contrast, saturation, preference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ffmef.errors import InputError

PREFERENCES = {"dark": -1.0, "bright": 1.0}


@dataclass(frozen=True)
class Adjustments:
    """Changes to the fused picture, 0 for none.

    Attributes:
        brightness: in stops, -4 to 4: shadows are multiplied by ``2 ** brightness`` and white stays white:
            ``RGB' = g RGB`` with ``g = k / (1 + (k - 1) t)``, ``k = 2 ** brightness``, ``t = (Y - 16) / 219`` in 0..1.
        contrast: -1 to 4: every band and octave is multiplied by ``1 + contrast``; the lowest level of the pyramid, the
            mean brightness over large areas, stays.
        saturation: -1 (grey) to 4: Cb and Cr are multiplied by ``1 + saturation``.
        prefer: -4 to 4: every share's logit is raised by ``prefer * r``, where r runs in even steps from -1 for the
            darkest exposure to 1 for the brightest. ``"dark"`` is -1, ``"bright"`` is 1.

    Raises:
        InputError: a value is outside its range or not a number.

    Example:
        >>> Adjustments(brightness=0.5).neutral
        False
        >>> Adjustments(prefer="dark").prefer
        -1.0
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    prefer: float | str = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.prefer, str):
            if self.prefer not in PREFERENCES:
                raise InputError(f"prefer must be dark, bright or a number from -4 to 4, got {self.prefer!r}")
            object.__setattr__(self, "prefer", PREFERENCES[self.prefer])
        for name, low in (("brightness", -4), ("contrast", -1), ("saturation", -1), ("prefer", -4)):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not low <= value <= 4:
                raise InputError(f"{name} must be a number from {low} to 4, got {value!r}")

    @property
    def neutral(self) -> bool:
        """Whether nothing is changed."""
        return not (self.brightness or self.contrast or self.saturation or self.prefer)


NEUTRAL = Adjustments()
