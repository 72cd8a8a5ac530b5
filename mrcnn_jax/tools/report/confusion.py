"""Confusion matrix, limited to the most confused classes, and a list of the most frequent confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcnn_jax.evaluation.analysis import Category, MetricTable
from mrcnn_jax.tools.pages.html import Html, tag
from mrcnn_jax.tools.report.tables import table_frame

_MAX_CLASSES = 16  # of the matrix
_MAX_CONFUSIONS = 10  # in the list


def matrix(table: MetricTable, categories: Sequence[Category]) -> Html:
    """Return the matrix: rows are true classes and background, columns are predicted classes and "missed".

    With more than 16 classes, it has those that are confused most often, and one row and column for all others.
    """
    shown, counts = _selected(table.confusion)
    names = [categories[k].name for k in shown]
    names += ["other classes"] if len(shown) < len(categories) else []
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = 100 * counts / totals
    heads = [tag("th", tag("span", name), scope="col", class_="predicted") for name in [*names, "missed"]]
    body = []
    for i, name in enumerate([*names, "background"]):
        cells = []
        for j, predicted in enumerate([*names, "missed"]):
            count, share = int(counts[i, j]), float(shares[i, j])
            title = f"{name}, predicted as {predicted}: {count:,}, {share:.0f}% of the row"
            correct = " correct" if i == j and i < len(shown) else ""
            style = f"--v:{share:.0f}%" if count else None
            cells.append(tag("td", f"{count:,}" if count else "", class_=f"cell{correct}", style=style, title=title))
        body.append(tag("tr", tag("th", name, scope="row"), cells))
    head = tag("thead", tag("tr", tag("th", "annotated ↓ predicted →", class_="corner"), heads))
    region = {"tabindex": 0, "role": "region", "aria_label": "confusion matrix"}
    return tag("div", tag("table", head, tag("tbody", body)), class_="table-frame confusion", **region)


def _selected(confusion: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the selected classes and their matrix; its last row and column but one are the other classes, if any."""
    count = len(confusion) - 1
    if count <= _MAX_CLASSES:
        return list(range(count)), confusion
    confused = confusion[:-1, :-1] * (1 - np.eye(count, dtype=confusion.dtype))
    frequency = confusion[:-1].sum(axis=1)
    order = np.lexsort((-frequency, -(confused.sum(axis=0) + confused.sum(axis=1))))
    shown = sorted(order[:_MAX_CLASSES].tolist())
    groups = np.full(count + 1, len(shown))
    groups[shown], groups[-1] = np.arange(len(shown)), len(shown) + 1
    counts = np.zeros((len(shown) + 2,) * 2, confusion.dtype)
    np.add.at(counts, (groups[:, None], groups[None, :]), confusion)
    return shown, counts


def most_frequent(table: MetricTable, categories: Sequence[Category]) -> Html:
    """Return a table of the most frequent confusions of two classes; empty if none occurs twice."""
    confused = table.confusion[:-1, :-1] * (1 - np.eye(len(categories), dtype=table.confusion.dtype))
    totals = table.confusion[:-1].sum(axis=1)
    rows = []
    for index in np.argsort(-confused, axis=None, kind="stable")[:_MAX_CONFUSIONS].tolist():
        i, j = divmod(index, len(categories))
        count = int(confused[i, j])
        if count > 1:
            share = tag("td", f"{100 * count / totals[i]:.0f}%", class_="number")
            cells = [tag("td", categories[i].name), tag("td", categories[j].name)]
            rows.append(tag("tr", cells, tag("td", f"{count:,}", class_="number"), share))
    heads = ["annotated", "predicted as", "count", "of the annotated"]
    return table_frame(heads, rows, "confusions", "most frequent confusions") if rows else Html("")
