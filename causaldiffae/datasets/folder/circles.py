"""Circular variables, such as an angle or an hour, whose largest and smallest values are neighbours.

All variables are numbers on a line or categories. A model learns a circle badly as a line: the images at its two ends
are alike, but their labels are as far apart as possible. Mechanisms, predictors and errors of all models would need the
period; two columns with sine and cosine, or sectors as categories, need nothing.
"""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np

_WORDS: Final = (
    (
        {"angle", "azimuth", "bearing", "direction", "heading", "orientation", "rotation", "yaw"}
        | {"deg", "degree", "degrees", "\u00b0", "rad", "radian", "radians"},
        (360.0, 2 * math.pi),
    ),
    ({"hue"}, (360.0, 1.0, 180.0)),
    ({"hour", "hours", "h"}, (24.0,)),
    ({"weekday", "dow"}, (7.0,)),
    ({"month"}, (12.0,)),
    ({"doy", "dayofyear"}, (365.0,)),
)
"""Words in the name or the unit of a circular variable, and the periods that it may have."""
_COVERED: Final = 0.85
"""Least share of a period from the smallest to the largest value; 6/7 for the days of a week."""
_EMPTY: Final = 0.25
"""Share of a period without values that is wide enough to cut the circle there."""


def describe_circle(name: str, unit: str, values: np.ndarray) -> str:
    """Says how to write the values (N,) of a variable that is likely circular; "" for any other variable."""
    words = {word.casefold() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+|\u00b0", f"{name} {unit}")}
    distinct = np.unique(values)
    periods = [period for known, each in _WORDS if known & words for period in each]
    span = float(np.ptp(distinct)) if len(distinct) > 2 else 0.0
    period = next((period for period in periods if _COVERED * period <= span <= period * (1 + 1e-3)), None)
    if period is None:
        return ""
    low, high = distinct[0], distinct[-1]
    gaps = np.diff(distinct)
    widest = int(np.argmax(gaps))
    problem = f"{low:g}..{high:g} is likely a circle of {period:g}, but is read as a line with two ends"
    if gaps[widest] > max(_EMPTY * period, low + period - high):
        below, above = distinct[widest], distinct[widest + 1]
        return f"{problem}; no value is in {below:g}..{above:g}: subtract {period:g} from those of {above:g} and more"
    return (
        f"{problem}; write sectors as categories, or two columns with sine and cosine; `kind: continuous` in the graph "
        "file if it is no circle"
    )
