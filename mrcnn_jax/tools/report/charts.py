"""Curves of precision over recall, and histograms of scores, as SVG."""

from __future__ import annotations

import base64
import json

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis import MetricTable
from mrcnn_jax.tools.pages import chart
from mrcnn_jax.tools.pages.html import Html, tag
from mrcnn_jax.tools.report.labels import HEADINGS, overlap, score

_LEVELS = 200  # of precision, in what the script draws the curve of one class from
_ABSENT = 255  # a class without ground truth
_ROOM = 250_000  # bytes of these numbers
_TENTHS = [(n / 5, f"{n / 5:g}") for n in range(6)]


def curves(table: MetricTable) -> Html:
    """Precision over recall at an overlap of 0.5, of 0.75, and in the mean over all of them; of all classes.

    The numbers of single classes are in attributes, for the script.
    """
    series = _series(table)  # (3, 101, C)
    lines, legend = [], []
    for k, name in enumerate(_names(table)):
        mean = _mean(series[k])
        style = f"line s{k}"
        points = "" if mean is None else _points(np.linspace(0, 1, len(mean)), mean)
        lines.append(tag("polyline", points=points, class_=style))
        key = tag("svg", tag("path", d="M0 5H26", class_=style), viewBox="0 0 26 10", aria_hidden="true")
        legend.append(tag("li", key, f"{name} ", tag("b", score(-1 if mean is None else float(mean.mean())))))
    step = next((n for n in (1, 2, 4, 5, 10) if series[:, ::n].size * 4 / 3 <= _ROOM), 20)
    levels = np.where(series < 0, _ABSENT, np.rint(series * _LEVELS)).astype(np.uint8)[:, ::step]
    means = np.where(series < 0, -1, series).mean(axis=1).T.round(4)
    return chart.chart(
        HEADINGS[table.iou_type],
        "recall",
        "precision",
        lines,
        _TENTHS,
        _TENTHS,
        tag("ul", legend, class_="legend"),
        data_precision=base64.b64encode(np.ascontiguousarray(levels.transpose(2, 0, 1)).tobytes()).decode(),
        data_averages=json.dumps(means.tolist(), separators=(",", ":")),
        data_levels=_LEVELS,
        data_plot=" ".join(f"{edge:g}" for edge in (chart.x(0), chart.x(1), chart.y(0), chart.y(1))),
    )


def _names(table: MetricTable) -> list[str]:
    measure = overlap(table.iou_type)
    return [f"{measure} 0.50", f"{measure} 0.75", "mean of 0.50 to 0.95"]


def _series(table: MetricTable) -> NDArray[np.float64]:
    """(3, 101, C): at 0.5, at 0.75, in the mean."""
    rows = [int(np.argmin(np.abs(table.thresholds - threshold))) for threshold in (0.5, 0.75)]
    return np.stack([*table.precision[rows], table.precision.mean(axis=0)])


def _mean(precision: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(101, C) -> (101,) over the classes that occur; None if none does."""
    present = (precision >= 0).all(axis=0)
    return precision[:, present].mean(axis=1) if present.any() else None


def _points(recalls: NDArray[np.float64], precisions: NDArray[np.float64]) -> str:
    return " ".join(
        f"{chart.x(a):.1f},{chart.y(b):.1f}" for a, b in zip(recalls.tolist(), precisions.tolist(), strict=True)
    )


def histogram(table: MetricTable, threshold: float) -> Html:
    """Predictions by score: right ones below, wrong ones above them."""
    bins = table.histogram.shape[1]
    limit = chart.round_up(float(table.histogram.sum(axis=0).max()))
    bars = []
    for k, (right, wrong) in enumerate(table.histogram.T.tolist()):
        title = tag("title", f"score {k / bins:.2f} to {(k + 1) / bins:.2f}: {right:,} right, {wrong:,} wrong")
        span = (k / bins, (k + 1) / bins)
        parts = [_bar(span, 0, right / limit, "right"), _bar(span, right / limit, wrong / limit, "wrong")]
        bars.append(tag("g", title, parts))
    legend = [tag("li", tag("i", class_=style), style) for style in ("right", "wrong")]
    return chart.chart(
        HEADINGS[table.iou_type],
        "score",
        "predictions",
        [*bars, *chart.mark(threshold, "shown")],
        _TENTHS,
        chart.quarters(limit),
        tag("ul", legend, class_="legend"),
    )


def _bar(span: tuple[float, float], bottom: float, height: float, style: str) -> Html:
    """From `bottom` up, in parts of the axis; one of a million is seen, too."""
    if not height:
        return Html("")
    left, right = map(chart.x, span)
    top = chart.y(bottom + height)
    size = {"width": chart.number(right - left - 1), "height": chart.number(max(chart.y(bottom) - top, 0.7))}
    return tag("rect", x=chart.number(left + 0.5), y=chart.number(top), class_=style, **size)
