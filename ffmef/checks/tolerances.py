"""How far from float64 a kernel may be."""

from __future__ import annotations

import os

# Largest error of an element, as a share of the sum of the magnitudes of its terms. float32 and float64: 16 roundings
# of the largest partial sum, for every order of summation. Half precision is summed in float32, so one rounding of
# the result, half a unit in the last place.
TOLERANCE = {"float32": 16 * 2.0**-24, "float16": 1.01 * 2.0**-11, "bfloat16": 1.01 * 2.0**-8, "float64": 16 * 2.0**-53}
# Half the smallest step of float16: what rounding costs a result too small for the relative bound.
SMALLEST = {"float16": 2.0**-25}
NETWORK = 1e-4  # of the whole network's luminance, whose range is 1


def slack(dtype: str) -> float:
    """Return the factor on the tolerance here: Triton's interpreter truncates to bfloat16 where GPUs round."""
    return 2.0 if dtype == "bfloat16" and os.environ.get("TRITON_INTERPRET") == "1" else 1.0
