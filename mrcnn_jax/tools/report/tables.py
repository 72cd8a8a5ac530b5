"""Tables of metrics, classes, errors and confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mrcnn_jax.evaluation.analysis import ERRORS, SPECIAL_ERRORS, Category, MetricTable
from mrcnn_jax.tools.pages.rendering import count_within, macros
from mrcnn_jax.tools.report.labels import HEADINGS, METRICS, OUTCOMES, overlap_measure

_TEMPLATE = "report/tables.html.jinja"
_ROW_BYTES = 300  # of a class, without its name
_MAX_CLASSES = 16  # of the confusion matrix
_MAX_CONFUSIONS = 10  # in the list


def metrics(tables: Sequence[MetricTable]) -> Markup:
    """Return a table with a row for each metric and a column for each kind of evaluation."""
    present = dict.fromkeys(name for table in tables for name in table.metrics)
    names = {name: METRICS.get(name, "") for name in (*METRICS, *present) if name in present}
    return macros(_TEMPLATE).metrics(tables, names, [HEADINGS[table.iou_type] for table in tables])


def classes(table: MetricTable, byte_budget: int) -> Markup:
    """Return a table with a row for each class within the byte budget, those without instances last."""
    rows = sorted(enumerate(table.classes), key=lambda pair: not pair[1].instances)
    shown = rows[: count_within((_ROW_BYTES + len(scores.name) for _, scores in rows), byte_budget)]
    label = f"AP of each class by {overlap_measure(table.iou_type)} of {HEADINGS[table.iou_type].lower()}"
    return macros(_TEMPLATE).classes(label, shown, len(rows) - len(shown))


def errors(table: MetricTable) -> Markup:
    """Return a table of the number of errors of each kind, and what AP50 would gain without them."""
    labels = {kind: OUTCOMES[kind] for kind in (*ERRORS, *SPECIAL_ERRORS)}
    return macros(_TEMPLATE).errors(HEADINGS[table.iou_type], table, labels)


def matrix(table: MetricTable, categories: Sequence[Category]) -> Markup:
    """Return the confusion matrix: rows are true classes and background, columns predicted classes and "missed".

    With more than 16 classes, it has those that are confused most often, and one row and column for all others.
    """
    confusion, shown = table.confusion, list(range(len(categories)))
    if len(shown) > _MAX_CLASSES:
        confused = _confused(table)
        order = np.lexsort((-confusion[:-1].sum(axis=1), -(confused.sum(axis=0) + confused.sum(axis=1))))
        shown = sorted(order[:_MAX_CLASSES].tolist())
        groups = np.full(len(confusion), len(shown))
        groups[shown], groups[-1] = np.arange(len(shown)), len(shown) + 1
        confusion = np.zeros((len(shown) + 2,) * 2, int)
        np.add.at(confusion, (groups[:, None], groups[None, :]), table.confusion)
    names = [categories[k].name for k in shown] + ["other classes"] * (len(shown) < len(categories))
    return macros(_TEMPLATE).matrix(names, confusion.tolist(), len(shown))


def most_frequent(table: MetricTable, categories: Sequence[Category]) -> Markup:
    """Return a table of the most frequent confusions of two classes; empty if none occurs twice."""
    confused, totals = _confused(table), table.confusion[:-1].sum(axis=1)
    order = np.argsort(-confused, axis=None, kind="stable")[:_MAX_CONFUSIONS].tolist()
    pairs = [(i, j) for i, j in (divmod(index, len(categories)) for index in order) if confused[i, j] > 1]
    rows = [(categories[i].name, categories[j].name, confused[i, j], confused[i, j] / totals[i]) for i, j in pairs]
    return macros(_TEMPLATE).confusions(rows)


def _confused(table: MetricTable) -> np.ndarray:
    """Return the confusion (C, C) of classes with other classes."""
    classes = table.confusion[:-1, :-1]
    return classes * (1 - np.eye(len(classes), dtype=classes.dtype))
