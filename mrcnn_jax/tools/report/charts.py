"""Precision-recall curves and score histograms."""

from __future__ import annotations

import base64
import json

import numpy as np
from markupsafe import Markup

from mrcnn_jax.evaluation.analysis import MetricTable
from mrcnn_jax.tools.pages.chart import Bar, Chart, axis_limit, quarter_ticks
from mrcnn_jax.tools.pages.rendering import macros
from mrcnn_jax.tools.report.labels import HEADINGS, overlap_measure

_LEVELS = 200  # precision is quantized to, for the curves of single classes
_UNDEFINED = 255  # level of a class without ground truth
_CURVES_BUDGET = 250_000  # bytes for the curves of single classes
_TENTHS = [(n / 5, f"{n / 5:g}") for n in range(6)]
_TEMPLATE = "report/charts.html.jinja"


def curves(table: MetricTable) -> Markup:
    """Return the precision-recall curves of all classes at an overlap of 0.5, of 0.75, and in the mean over overlaps.

    Data attributes have the curves of single classes for report.js.
    """
    rows = [int(np.argmin(np.abs(table.thresholds - threshold))) for threshold in (0.5, 0.75)]
    precision = np.stack([*table.precision[rows], table.precision.mean(axis=0)])  # (3, 101, C)
    present = (precision >= 0).all(axis=(0, 1))  # classes with ground truth
    means = precision[..., present].mean(axis=2) if present.any() else np.empty((3, 0))
    recalls = np.linspace(0, 1, means.shape[1]).tolist()
    lines = [(list(zip(recalls, mean.tolist(), strict=True)), f"line s{k}") for k, mean in enumerate(means)]
    step = next((n for n in (1, 2, 4, 5, 10) if precision[:, ::n].size * 4 / 3 <= _CURVES_BUDGET), 20)
    levels = np.where(precision < 0, _UNDEFINED, np.rint(precision * _LEVELS)).astype(np.uint8)[:, ::step]
    averages = np.where(precision < 0, -1, precision).mean(axis=1).T.round(4)
    data = {
        "data-precision": base64.b64encode(np.ascontiguousarray(levels.transpose(2, 0, 1)).tobytes()).decode(),
        "data-averages": json.dumps(averages.tolist(), separators=(",", ":")),
        "data-levels": _LEVELS,
    }
    chart = Chart(HEADINGS[table.iou_type], "recall", "precision", _TENTHS, _TENTHS, lines=lines, data=data)
    scores = [mean.mean() if len(mean) else -1 for mean in means]
    return macros(_TEMPLATE).curves(chart, overlap_measure(table.iou_type), scores)


def histogram(table: MetricTable, threshold: float) -> Markup:
    """Return a histogram of predictions by score: correct ones below, wrong ones above them."""
    edges = np.linspace(0, 1, table.histogram.shape[1] + 1).tolist()
    limit = axis_limit(float(table.histogram.sum(axis=0).max()))
    bars = []
    for left, right, (correct, wrong) in zip(edges, edges[1:], table.histogram.T.tolist(), strict=False):
        text = f"score {left:.2f} to {right:.2f}: {correct:,} correct, {wrong:,} wrong"
        parts = [(0, correct, "correct"), (correct, correct + wrong, "wrong")]
        bars.append(Bar(left, right, text, [(low / limit, top / limit, name) for low, top, name in parts if low < top]))
    chart = Chart(HEADINGS[table.iou_type], "score", "predictions", _TENTHS, quarter_ticks(limit), bars)
    return macros(_TEMPLATE).histogram(chart._replace(limits=[(threshold, "shown")]))
