"""Precision-recall curves and score histograms as SVG."""

from __future__ import annotations

import base64
import json

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis import MetricTable
from mrcnn_jax.tools.pages import chart
from mrcnn_jax.tools.pages.html import Html, tag
from mrcnn_jax.tools.report.labels import HEADINGS, format_score, overlap_measure

_LEVELS = 200  # precision is quantized to, for the curves of single classes
_UNDEFINED = 255  # level of a class without ground truth
_CURVES_BUDGET = 250_000  # bytes for the curves of single classes
_TENTHS = [(n / 5, f"{n / 5:g}") for n in range(6)]


def curves(table: MetricTable) -> Html:
    """Return the precision-recall curves of all classes at an overlap of 0.5, of 0.75, and in the mean over overlaps.

    Data attributes have the curves of single classes for report.js.
    """
    series = _series(table)  # (3, 101, C)
    lines, legend = [], []
    for k, name in enumerate(_names(table)):
        mean = _class_mean(series[k])
        style = f"line s{k}"
        points = "" if mean is None else _points(np.linspace(0, 1, len(mean)), mean)
        lines.append(tag("polyline", points=points, class_=style))
        symbol = tag("svg", tag("path", d="M0 5H26", class_=style), viewBox="0 0 26 10", aria_hidden="true")
        legend.append(tag("li", symbol, f"{name} ", tag("b", format_score(-1 if mean is None else float(mean.mean())))))
    step = next((n for n in (1, 2, 4, 5, 10) if series[:, ::n].size * 4 / 3 <= _CURVES_BUDGET), 20)
    levels = np.where(series < 0, _UNDEFINED, np.rint(series * _LEVELS)).astype(np.uint8)[:, ::step]
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
        data_plot=" ".join(f"{edge:g}" for edge in (chart.to_x(0), chart.to_x(1), chart.to_y(0), chart.to_y(1))),
    )


def _names(table: MetricTable) -> list[str]:
    measure = overlap_measure(table.iou_type)
    return [f"{measure} 0.50", f"{measure} 0.75", "mean of 0.50 to 0.95"]


def _series(table: MetricTable) -> NDArray[np.float64]:
    """Return the precision (3, 101, C) at an overlap of 0.5, of 0.75, and in the mean over overlaps."""
    rows = [int(np.argmin(np.abs(table.thresholds - threshold))) for threshold in (0.5, 0.75)]
    return np.stack([*table.precision[rows], table.precision.mean(axis=0)])


def _class_mean(precision: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the mean (101,) of (101, C) over the classes with ground truth; None if there are none."""
    present = (precision >= 0).all(axis=0)
    return precision[:, present].mean(axis=1) if present.any() else None


def _points(recalls: NDArray[np.float64], precisions: NDArray[np.float64]) -> str:
    return " ".join(
        f"{chart.to_x(a):.1f},{chart.to_y(b):.1f}" for a, b in zip(recalls.tolist(), precisions.tolist(), strict=True)
    )


def histogram(table: MetricTable, threshold: float) -> Html:
    """Return a histogram of predictions by score: correct ones below, wrong ones above them."""
    bins = table.histogram.shape[1]
    limit = chart.axis_limit(float(table.histogram.sum(axis=0).max()))
    bars = []
    for k, (correct, wrong) in enumerate(table.histogram.T.tolist()):
        title = tag("title", f"score {k / bins:.2f} to {(k + 1) / bins:.2f}: {correct:,} correct, {wrong:,} wrong")
        span = (k / bins, (k + 1) / bins)
        parts = [_bar(span, 0, correct / limit, "correct"), _bar(span, correct / limit, wrong / limit, "wrong")]
        bars.append(tag("g", title, parts))
    legend = [tag("li", tag("i", class_=style), style) for style in ("correct", "wrong")]
    return chart.chart(
        HEADINGS[table.iou_type],
        "score",
        "predictions",
        [*bars, *chart.vertical_line(threshold, "shown")],
        _TENTHS,
        chart.quarter_ticks(limit),
        tag("ul", legend, class_="legend"),
    )


def _bar(span: tuple[float, float], bottom: float, height: float, style: str) -> Html:
    """Return a bar from `bottom` up, in fractions of the axis, of at least a visible height."""
    if not height:
        return Html("")
    left, right = map(chart.to_x, span)
    top = chart.to_y(bottom + height)
    size = {"width": chart.decimal(right - left - 1), "height": chart.decimal(max(chart.to_y(bottom) - top, 0.7))}
    return tag("rect", x=chart.decimal(left + 0.5), y=chart.decimal(top), class_=style, **size)
