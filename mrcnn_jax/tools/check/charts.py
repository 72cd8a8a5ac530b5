"""Histograms as SVG, in the colors of the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mrcnn_jax.tools.check.survey import LARGE, SMALL, Survey
from mrcnn_jax.tools.pages.chart import Tick, chart, mark, number, quarters, round_up, x, y
from mrcnn_jax.tools.pages.html import Html, tag

_CELLS = 32  # of the image sizes, on either side


def charts(survey: Survey) -> list[Html]:
    """Everything that has a distribution."""
    if not len(survey.sizes):
        return []
    drawn = [_sizes(survey.sizes), _aspects(survey.sizes), _crowding(survey.instances)]
    areas = survey.annotated.areas[~survey.annotated.crowd]
    if len(areas):
        drawn.append(_areas(areas))
    if (survey.class_instances > 0).sum() > 1:
        drawn.append(_frequencies(survey.class_instances))
    return drawn


def _sizes(sizes: np.ndarray) -> Html:
    """A dot for each pair of width and height, its area by the number of images."""
    limit = round_up(float(sizes.max()))
    cells = np.minimum(sizes * _CELLS // limit, _CELLS - 1).astype(int)
    _pairs, members, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    dots = []
    for k, count in enumerate(counts.tolist()):
        height, width = sizes[members.ravel() == k].mean(axis=0)
        dots.append(
            tag(
                "circle",
                tag("title", f"about {height:.0f} x {width:.0f}: {count:,} images"),
                cx=number(x(width / limit)),
                cy=number(y(height / limit)),
                r=number(2.5 + 10 * math.sqrt(count / counts.max())),
                class_="dot",
            )
        )
    ticks = [(part / 4, f"{limit * part / 4:g}") for part in range(5)]
    return chart("Image sizes", "width", "height", dots, ticks, ticks)


def _aspects(sizes: np.ndarray) -> Html:
    values = np.log2(sizes[:, 1] / sizes[:, 0])
    reach = max(1.0, math.ceil(np.abs(values).max() * 2) / 2)
    wholes = range(-math.floor(reach), math.floor(reach) + 1)
    step = -(-len(wholes) // 7)  # labels that find room
    ticks = [((n + reach) / 2 / reach, f"{2**n}:1" if n >= 0 else f"1:{2**-n}") for n in wholes if n % step == 0]
    edges = np.linspace(-reach, reach, 2 * max(12, round(6 * reach)) + 2)  # an odd number: squares get their own bar
    labels = [f"{2**a:.2f} to {2**b:.2f}" for a, b in itertools.pairwise(edges)]
    return _histogram("Aspect ratios", "width : height", "images", values, edges, labels, ticks)


def _crowding(instances: np.ndarray) -> Html:
    most = int(instances.max())
    step = max(1, -(-(most + 1) // 40))
    edges = np.arange(0, most + step + 1, step) - 0.5
    labels = [f"{a + 0.5:g}" if step == 1 else f"{a + 0.5:g} to {b - 0.5:g}" for a, b in itertools.pairwise(edges)]
    span = edges[-1] - edges[0]
    marks = sorted({round(most * part / 4) for part in range(5)})
    ticks = [((mark - edges[0]) / span, f"{mark:,}") for mark in marks]
    return _histogram("Instances per image", "instances", "images", instances, edges, labels, ticks)


def _areas(areas: np.ndarray) -> Html:
    """By the side of a square of the same area, since areas span too many orders."""
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
    chart = ("Object areas", "pixels", "instances", values, edges, labels, ticks)
    return _histogram(*chart, [mark for mark in limits if 0 < mark[0] < 1])


def _frequencies(counts: np.ndarray) -> Html:
    """Instances of each class, the most frequent first, both axes logarithmic: the tail is what there is to see."""
    ranked = np.sort(counts[counts > 0])[::-1]
    top = max(1, math.ceil(math.log10(ranked[0])))
    right = math.log10(len(ranked)) or 1.0
    places = [(math.log10(k + 1) / right, math.log10(n) / top) for k, n in enumerate(ranked.tolist())]
    line = tag("polyline", points=" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in places), class_="line")
    y_ticks = [(n / top, f"{10**n:,}") for n in range(top + 1)]
    ranks = [rank for n in range(math.floor(right) + 1) for rank in (10**n, 3 * 10**n) if rank <= len(ranked)]
    x_ticks = [(math.log10(rank) / right, f"{rank:,}") for rank in ranks]
    return chart("Class frequencies", "rank of the class", "instances", [line], x_ticks, y_ticks)


def _histogram(
    title: str,
    x_name: str,
    y_name: str,
    values: np.ndarray,
    edges: np.ndarray,
    labels: Sequence[str],
    ticks: Sequence[Tick],
    marks: Sequence[Tick] = (),
) -> Html:
    counts, _ = np.histogram(values, edges)
    limit = round_up(float(counts.max()))
    span = 1 / len(counts)
    bars = []
    for k, count in enumerate(counts.tolist()):
        if count:  # one of a million is seen, too
            top, bottom = min(y(count / limit), y(0) - 1), y(0)
            size = {"width": number(max(1, x(span) - x(0) - 1)), "height": number(bottom - top)}
            text = tag("title", f"{labels[k]}: {count:,} {y_name}")
            bars.append(tag("rect", text, x=number(x(k * span) + 0.5), y=number(top), class_="bar", **size))
    for place, name in marks:
        bars += mark(place, name)
    return chart(title, x_name, y_name, bars, ticks, quarters(limit))
