"""Content of charts, which templates/chart.html.jinja draws. Positions are from 0 to 1 along the axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Mark = tuple[float, str]  # position on an axis and its label


class Bar(NamedTuple):
    """A bar, or several ones upon each other; browsers show `text` while the pointer is over them."""

    left: float
    right: float
    text: str
    parts: Sequence[tuple[float, float, str]]  # bottom, top, class in the stylesheet


class Dot(NamedTuple):
    """A dot of a scatter plot, with a text like that of `Bar`."""

    x: float
    y: float
    radius: float  # units of the SVG
    text: str


class Chart(NamedTuple):
    """Axes, grid, and everything between them."""

    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Mark]
    y_ticks: Sequence[Mark]
    bars: Sequence[Bar] = ()
    dots: Sequence[Dot] = ()
    lines: Sequence[tuple[Sequence[tuple[float, float]], str]] = ()  # points, class in the stylesheet
    limits: Sequence[Mark] = ()  # vertical lines with a name on their right
    data: Mapping[str, object] = {}  # attributes for scripts


def quarter_ticks(limit: float) -> list[Mark]:
    """Return ticks at the quarters of an axis from 0 to `limit`, where these are whole numbers."""
    return [(part / 4, f"{limit * part / 4:,.10g}") for part in range(5) if limit * part % 4 == 0]


def axis_limit(value: float) -> float:
    """Return the next of 4, 8, 12, 20, 40, 80, 120, ..., whose quarters are whole numbers."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1) / 4)))
    return next(4 * power * digit for digit in (1, 2, 3, 5, 10) if 4 * power * digit >= value)
