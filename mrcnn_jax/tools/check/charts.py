"""Histograms and a scatter plot of a survey."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mrcnn_jax.tools.check.survey import LARGE, SMALL, Survey
from mrcnn_jax.tools.pages.chart import Bar, Chart, Dot, Mark, axis_limit, quarter_ticks
from mrcnn_jax.tools.pages.rendering import counted

_SIZE_BINS = 32  # of image heights and widths


def charts(survey: Survey) -> list[Chart]:
    """Return the charts of a file, without those that it has no data for."""
    if not len(survey.sizes):
        return []
    found = [_sizes(survey.sizes), _aspects(survey.sizes), _crowding(survey.instances)]
    areas = survey.annotations.areas[~survey.annotations.crowd]
    if len(areas):
        found.append(_areas(areas))
    if (survey.class_instances > 0).sum() > 1:
        found.append(_frequencies(survey.class_instances))
    return found


def _sizes(sizes: np.ndarray) -> Chart:
    """Return a scatter plot of widths and heights, with dots as large as the number of images."""
    limit = axis_limit(float(sizes.max()))
    cells = np.minimum(sizes * _SIZE_BINS // limit, _SIZE_BINS - 1).astype(int)
    _, members, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    dots = []
    for k, count in enumerate(counts.tolist()):
        height, width = sizes[members.ravel() == k].mean(axis=0)
        text = f"about {height:.0f} x {width:.0f}: {counted(count, 'image')}"
        dots.append(Dot(width / limit, height / limit, 2.5 + 10 * math.sqrt(count / counts.max()), text))
    ticks = [(part / 4, f"{limit * part / 4:g}") for part in range(5)]
    return Chart("Image sizes", "width", "height", ticks, ticks, dots=dots)


def _aspects(sizes: np.ndarray) -> Chart:
    values = np.log2(sizes[:, 1] / sizes[:, 0])
    half_range = max(1.0, math.ceil(np.abs(values).max() * 2) / 2)
    powers = range(-math.floor(half_range), math.floor(half_range) + 1)
    step = -(-len(powers) // 7)  # at most 7 labels
    ticks = [(float(n), f"{2**n}:1" if n >= 0 else f"1:{2**-n}") for n in powers if n % step == 0]
    # An odd number of bars: one is centered at squares.
    edges = np.linspace(-half_range, half_range, 2 * max(12, round(6 * half_range)) + 2)
    texts = [f"{2**a:.2f} to {2**b:.2f}" for a, b in itertools.pairwise(edges)]
    return _histogram("Aspect ratios", "width : height", "image", values, edges, texts, ticks)


def _crowding(instances: np.ndarray) -> Chart:
    largest = int(instances.max())
    step = max(1, -(-(largest + 1) // 40))
    edges = np.arange(0, largest + step + 1, step) - 0.5
    texts = [f"{a + 0.5:g}" if step == 1 else f"{a + 0.5:g} to {b - 0.5:g}" for a, b in itertools.pairwise(edges)]
    ticks = [(float(n), f"{n:,}") for n in sorted({round(largest * part / 4) for part in range(5)})]
    return _histogram("Instances per image", "instances", "image", instances, edges, texts, ticks)


def _areas(areas: np.ndarray) -> Chart:
    """Return a histogram of areas over log2 of the side of a square of the same area."""
    values = np.log2(np.sqrt(areas))
    low, high = math.floor(values.min()), math.ceil(values.max() + 1e-9)
    high = max(high, low + 1)
    edges = np.linspace(low, high, 4 * (high - low) + 1)
    texts = [f"side {2**a:.0f} to {2**b:.0f}" for a, b in itertools.pairwise(edges)]
    ticks = [(float(n), f"{2.0**n:g}²") for n in range(low, high + 1, -(-(high - low + 1) // 8))]
    limits = [(math.log2(limit) / 2, name) for limit, name in ((SMALL, "medium"), (LARGE, "large"))]
    limits = [limit for limit in limits if low < limit[0] < high]
    return _histogram("Object areas", "pixels", "instance", values, edges, texts, ticks, limits)


def _frequencies(counts: np.ndarray) -> Chart:
    """Return the instances of each class over its rank by frequency; both axes are logarithmic to show the tail."""
    ranked = np.sort(counts[counts > 0])[::-1]
    top = max(1, math.ceil(math.log10(ranked[0])))
    right = math.log10(len(ranked)) or 1.0
    points = [(math.log10(k + 1) / right, math.log10(n) / top) for k, n in enumerate(ranked.tolist())]
    y_ticks = [(n / top, f"{10**n:,}") for n in range(top + 1)]
    ranks = [rank for n in range(math.floor(right) + 1) for rank in (10**n, 3 * 10**n) if rank <= len(ranked)]
    x_ticks = [(math.log10(rank) / right, f"{rank:,}") for rank in ranks]
    lines = [(points, "line")]
    return Chart("Class frequencies", "rank of the class", "instances", x_ticks, y_ticks, lines=lines)


def _histogram(
    title: str,
    x_label: str,
    noun: str,
    values: np.ndarray,
    edges: np.ndarray,
    texts: Sequence[str],
    ticks: Sequence[Mark],
    limits: Sequence[Mark] = (),
) -> Chart:
    """Return the histogram of `values`. `noun` is what it counts; ticks and limits have the same units as `edges`."""
    counts, _ = np.histogram(values, edges)
    top = axis_limit(float(counts.max()))

    def position(value: float) -> float:
        return float((value - edges[0]) / (edges[-1] - edges[0]))

    bars = [
        Bar(position(left), position(right), f"{text}: {counted(count, noun)}", [(0, count / top, "bar")])
        for left, right, text, count in zip(edges, edges[1:], texts, counts.tolist(), strict=False)
        if count
    ]
    x_ticks, lines = ([(position(value), name) for value, name in marks] for marks in (ticks, limits))
    return Chart(title, x_label, f"{noun}s", x_ticks, quarter_ticks(top), bars, limits=lines)
