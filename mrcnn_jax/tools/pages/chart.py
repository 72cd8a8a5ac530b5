"""The frame of a chart as SVG: axes, grid and names, in the colors of the page; and where in it things lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mrcnn_jax.tools.pages.html import Child, Html, tag

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40  # margins of the plot

Tick = tuple[float, str]  # where, on an axis from 0 to 1, and its label


def chart(
    title: str,
    x_name: str,
    y_name: str,
    content: Sequence[Html],
    x_ticks: Sequence[Tick],
    y_ticks: Sequence[Tick],
    below: Child = (),
    **attributes: object,
) -> Html:
    """A figure with `content`, placed by `x` and `y`, in its frame; `below`, and `attributes`, are the figure's."""
    grid = [tag("path", d=f"M{LEFT} {y(place):.1f}H{WIDTH - RIGHT}", class_="grid") for place, _ in y_ticks]
    under = [tag("text", text, x=number(x(place)), y=y(0) + 15, class_="x") for place, text in x_ticks]
    beside = [tag("text", text, x=LEFT - 6, y=f"{y(place) + 4:.1f}", class_="y") for place, text in y_ticks]
    names = [
        tag("text", x_name, x=number(x(0.5)), y=HEIGHT - 6, class_="x"),
        tag("text", y_name, x=number(-y(0.5)), y=11, class_="x", transform="rotate(-90)"),
    ]
    viewed = f"0 0 {WIDTH} {HEIGHT}"
    drawn = tag("svg", *grid, *under, *beside, *names, *content, viewBox=viewed, role="img", aria_label=title)
    return tag("figure", tag("figcaption", title), drawn, below, class_="chart", **attributes)


def mark(place: float, name: str) -> list[Html]:
    """An upright line, and a name on its right."""
    line = tag("path", d=f"M{number(x(place))} {TOP}V{y(0):g}", class_="mark")
    return [line, tag("text", f"{name} →", x=number(x(place) + 4), y=TOP + 10)]


def quarters(limit: float) -> list[Tick]:
    """Ticks of an axis from 0 to `limit` that counts something: those that are whole numbers."""
    return [(part / 4, f"{limit * part / 4:,.10g}") for part in range(5) if limit * part % 4 == 0]


def x(place: float) -> float:
    """From 0..1 on the axis to the units of the chart."""
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def y(place: float) -> float:
    """From 0..1 on the axis, upwards, to the units of the chart, downwards."""
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def number(value: float) -> str:
    """As many digits as can be seen."""
    return f"{value:.1f}"


def round_up(value: float) -> float:
    """The next of 4, 8, 12, 20, 40, 80, 120, ...: quarters of it are whole."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1) / 4)))
    return next(4 * power * digit for digit in (1, 2, 3, 5, 10) if 4 * power * digit >= value)
