"""Axes, grid and labels of a chart as SVG, and the positions of its content."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mrcnn_jax.tools.pages.html import Child, Html, tag

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40  # margins of the plot

Tick = tuple[float, str]  # position on an axis from 0 to 1, label


def chart(
    title: str,
    x_label: str,
    y_label: str,
    content: Sequence[Html],
    x_ticks: Sequence[Tick],
    y_ticks: Sequence[Tick],
    legend: Child = (),
    **attributes: object,
) -> Html:
    """Return a figure of `content`, which is positioned with `to_x` and `to_y`, and a `legend` below it.

    `attributes` are those of the figure.
    """
    grid = [tag("path", d=f"M{LEFT} {to_y(value):.1f}H{WIDTH - RIGHT}", class_="grid") for value, _ in y_ticks]
    x_texts = [tag("text", text, x=decimal(to_x(value)), y=to_y(0) + 15, class_="x") for value, text in x_ticks]
    y_texts = [tag("text", text, x=LEFT - 6, y=f"{to_y(value) + 4:.1f}", class_="y") for value, text in y_ticks]
    labels = [
        tag("text", x_label, x=decimal(to_x(0.5)), y=HEIGHT - 6, class_="x"),
        tag("text", y_label, x=decimal(-to_y(0.5)), y=11, class_="x", transform="rotate(-90)"),
    ]
    view_box = f"0 0 {WIDTH} {HEIGHT}"
    svg = tag("svg", *grid, *x_texts, *y_texts, *labels, *content, viewBox=view_box, role="img", aria_label=title)
    return tag("figure", tag("figcaption", title), svg, legend, class_="chart", **attributes)


def vertical_line(value: float, name: str) -> list[Html]:
    """Return a vertical line at `value` of the x axis, with a name on its right."""
    line = tag("path", d=f"M{decimal(to_x(value))} {TOP}V{to_y(0):g}", class_="marker")
    return [line, tag("text", f"{name} →", x=decimal(to_x(value) + 4), y=TOP + 10)]


def quarter_ticks(limit: float) -> list[Tick]:
    """Return ticks at the quarters of an axis from 0 to `limit`, where these are whole numbers."""
    return [(part / 4, f"{limit * part / 4:,.10g}") for part in range(5) if limit * part % 4 == 0]


def to_x(value: float) -> float:
    """Convert 0..1 of the x axis to units of the chart."""
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def to_y(value: float) -> float:
    """Convert 0..1 of the y axis, which points up, to units of the chart, which point down."""
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def decimal(value: float) -> str:
    """Format a coordinate with one decimal."""
    return f"{value:.1f}"


def axis_limit(value: float) -> float:
    """Return the next of 4, 8, 12, 20, 40, 80, 120, ..., whose quarters are whole numbers."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1) / 4)))
    return next(4 * power * digit for digit in (1, 2, 3, 5, 10) if 4 * power * digit >= value)
