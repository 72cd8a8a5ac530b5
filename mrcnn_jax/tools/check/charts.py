"""Histograms and scatter plots of a survey as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mrcnn_jax.tools.check.survey import LARGE, SMALL, Survey, counted
from mrcnn_jax.tools.pages.chart import Tick, axis_limit, chart, decimal, quarter_ticks, to_x, to_y, vertical_line
from mrcnn_jax.tools.pages.html import Html, tag

_SIZE_BINS = 32  # of image heights and widths


def charts(survey: Survey) -> list[Html]:
    """Return the charts of a file, without those that it has no data for."""
    if not len(survey.sizes):
        return []
    figures = [_sizes(survey.sizes), _aspects(survey.sizes), _crowding(survey.instances)]
    areas = survey.annotations.areas[~survey.annotations.crowd]
    if len(areas):
        figures.append(_areas(areas))
    if (survey.class_instances > 0).sum() > 1:
        figures.append(_frequencies(survey.class_instances))
    return figures


def _sizes(sizes: np.ndarray) -> Html:
    """Return a scatter plot of widths and heights, with dots as large as the number of images."""
    limit = axis_limit(float(sizes.max()))
    cells = np.minimum(sizes * _SIZE_BINS // limit, _SIZE_BINS - 1).astype(int)
    _, members, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    dots = []
    for k, count in enumerate(counts.tolist()):
        height, width = sizes[members.ravel() == k].mean(axis=0)
        dots.append(
            tag(
                "circle",
                tag("title", f"about {height:.0f} x {width:.0f}: {counted(count, 'image')}"),
                cx=decimal(to_x(width / limit)),
                cy=decimal(to_y(height / limit)),
                r=decimal(2.5 + 10 * math.sqrt(count / counts.max())),
                class_="dot",
            )
        )
    ticks = [(part / 4, f"{limit * part / 4:g}") for part in range(5)]
    return chart("Image sizes", "width", "height", dots, ticks, ticks)


def _aspects(sizes: np.ndarray) -> Html:
    values = np.log2(sizes[:, 1] / sizes[:, 0])
    half_range = max(1.0, math.ceil(np.abs(values).max() * 2) / 2)
    powers = range(-math.floor(half_range), math.floor(half_range) + 1)
    step = -(-len(powers) // 7)  # at most 7 labels
    ticks = [
        ((n + half_range) / 2 / half_range, f"{2**n}:1" if n >= 0 else f"1:{2**-n}") for n in powers if n % step == 0
    ]
    # An odd number of bars: one is centered at squares.
    edges = np.linspace(-half_range, half_range, 2 * max(12, round(6 * half_range)) + 2)
    labels = [f"{2**a:.2f} to {2**b:.2f}" for a, b in itertools.pairwise(edges)]
    return _histogram("Aspect ratios", "width : height", "images", values, edges, labels, ticks)


def _crowding(instances: np.ndarray) -> Html:
    largest = int(instances.max())
    step = max(1, -(-(largest + 1) // 40))
    edges = np.arange(0, largest + step + 1, step) - 0.5
    labels = [f"{a + 0.5:g}" if step == 1 else f"{a + 0.5:g} to {b - 0.5:g}" for a, b in itertools.pairwise(edges)]
    span = edges[-1] - edges[0]
    values = sorted({round(largest * part / 4) for part in range(5)})
    ticks = [((value - edges[0]) / span, f"{value:,}") for value in values]
    return _histogram("Instances per image", "instances", "images", instances, edges, labels, ticks)


def _areas(areas: np.ndarray) -> Html:
    """Return a histogram of areas over log2 of the side of a square of the same area."""
    values = np.log2(np.sqrt(areas))
    low, high = math.floor(values.min()), math.ceil(values.max() + 1e-9)
    high = max(high, low + 1)
    edges = np.linspace(low, high, 4 * (high - low) + 1)
    labels = [f"side {2**a:.0f} to {2**b:.0f}" for a, b in itertools.pairwise(edges)]
    step = -(-(high - low + 1) // 8)
    ticks = [((n - low) / (high - low), f"{2.0**n:g}²") for n in range(low, high + 1, step)]
    limits = [
        ((math.log2(limit) / 2 - low) / (high - low), name) for limit, name in ((SMALL, "medium"), (LARGE, "large"))
    ]
    lines = [line for line in limits if 0 < line[0] < 1]
    return _histogram("Object areas", "pixels", "instances", values, edges, labels, ticks, lines)


def _frequencies(counts: np.ndarray) -> Html:
    """Return the instances of each class over its rank by frequency; both axes are logarithmic to show the tail."""
    ranked = np.sort(counts[counts > 0])[::-1]
    top = max(1, math.ceil(math.log10(ranked[0])))
    right = math.log10(len(ranked)) or 1.0
    points = [(math.log10(k + 1) / right, math.log10(n) / top) for k, n in enumerate(ranked.tolist())]
    line = tag("polyline", points=" ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in points), class_="line")
    y_ticks = [(n / top, f"{10**n:,}") for n in range(top + 1)]
    ranks = [rank for n in range(math.floor(right) + 1) for rank in (10**n, 3 * 10**n) if rank <= len(ranked)]
    x_ticks = [(math.log10(rank) / right, f"{rank:,}") for rank in ranks]
    return chart("Class frequencies", "rank of the class", "instances", [line], x_ticks, y_ticks)


def _histogram(
    title: str,
    x_label: str,
    y_label: str,
    values: np.ndarray,
    edges: np.ndarray,
    labels: Sequence[str],
    ticks: Sequence[Tick],
    lines: Sequence[Tick] = (),
) -> Html:
    counts, _ = np.histogram(values, edges)
    limit = axis_limit(float(counts.max()))
    span = 1 / len(counts)
    bars = []
    for k, count in enumerate(counts.tolist()):
        if count:  # at least one unit high, to be visible
            top, bottom = min(to_y(count / limit), to_y(0) - 1), to_y(0)
            size = {"width": decimal(max(1, to_x(span) - to_x(0) - 1)), "height": decimal(bottom - top)}
            text = tag("title", f"{labels[k]}: {counted(count, y_label.removesuffix('s'))}")
            bars.append(tag("rect", text, x=decimal(to_x(k * span) + 0.5), y=decimal(top), class_="bar", **size))
    for value, name in lines:
        bars += vertical_line(value, name)
    return chart(title, x_label, y_label, bars, ticks, quarter_ticks(limit))
