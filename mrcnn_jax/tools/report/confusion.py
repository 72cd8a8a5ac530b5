"""What is taken for what: the confusion matrix, or, of many classes, the part of it where they are confused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcnn_jax.evaluation.analysis import Category, MetricTable
from mrcnn_jax.tools.pages.html import Html, tag
from mrcnn_jax.tools.report.tables import framed

_MOST = 16  # classes that the matrix shows
_LISTED = 10  # confusions in the list


def matrix(table: MetricTable, categories: Sequence[Category]) -> Html:
    """The matrix: a row for each true class and for background, a column for each predicted class and for missed.

    Of more classes than find room, those that are confused most often with others; the rest are one class, in which
    right and wrong cannot be told apart.
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
            right = " right" if i == j and i < len(shown) else ""
            style = f"--v:{share:.0f}%" if count else None
            cells.append(tag("td", f"{count:,}" if count else "", class_=f"cell{right}", style=style, title=title))
        body.append(tag("tr", tag("th", name, scope="row"), cells))
    head = tag("thead", tag("tr", tag("th", "annotated ↓ predicted →", class_="corner"), heads))
    region = {"tabindex": 0, "role": "region", "aria_label": "confusion matrix"}
    return tag("div", tag("table", head, tag("tbody", body)), class_="classes confusion", **region)


def _selected(confusion: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Classes in their order, and the matrix (n + 1, n + 1) of them; the others are the one before the last, if any."""
    count = len(confusion) - 1
    if count <= _MOST:
        return list(range(count)), confusion
    between = confusion[:-1, :-1] * (1 - np.eye(count, dtype=confusion.dtype))
    seen = confusion[:-1].sum(axis=1)
    order = np.lexsort((-seen, -(between.sum(axis=0) + between.sum(axis=1))))
    shown = sorted(order[:_MOST].tolist())
    groups = np.full(count + 1, len(shown))
    groups[shown], groups[-1] = np.arange(len(shown)), len(shown) + 1
    counts = np.zeros((len(shown) + 2,) * 2, confusion.dtype)
    np.add.at(counts, (groups[:, None], groups[None, :]), confusion)
    return shown, counts


def most_frequent(table: MetricTable, categories: Sequence[Category]) -> Html:
    """The confusions of two classes that occur most often, in words; nothing if none occurs twice."""
    between = table.confusion[:-1, :-1] * (1 - np.eye(len(categories), dtype=table.confusion.dtype))
    totals = table.confusion[:-1].sum(axis=1)
    rows = []
    for place in np.argsort(-between, axis=None, kind="stable")[:_LISTED].tolist():
        i, j = divmod(place, len(categories))
        count = int(between[i, j])
        if count > 1:  # once may be chance
            share = tag("td", f"{100 * count / totals[i]:.0f}%", class_="number")
            cells = [tag("td", categories[i].name), tag("td", categories[j].name)]
            rows.append(tag("tr", cells, tag("td", f"{count:,}", class_="number"), share))
    heads = ["annotated", "predicted as", "how often", "of the annotated"]
    return framed(heads, rows, "confusions", "most frequent confusions") if rows else Html("")
