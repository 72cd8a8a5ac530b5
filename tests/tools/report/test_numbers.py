"""Tables, curves and confusion matrices of the report."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import numpy as np
import pytest

from mrcnn_jax.evaluation.analysis import Analysis, Category, TideErrors
from mrcnn_jax.tools.report import charts, tables


def rows(markup: str) -> list[list[str]]:
    """The text of each cell."""
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", markup, re.S)
    ]


def test_metrics(analysis: Analysis) -> None:
    changed = dataclasses.replace(analysis.tables[0], metrics={**analysis.tables[0].metrics, "APs": -1.0, "APx": 0.25})
    read = {row[0].split(" ")[0]: row[1:] for row in rows(tables.metrics([changed, analysis.tables[2]]))}
    assert read["AP"] == [f"{table.metrics['AP']:.3f}" for table in (changed, analysis.tables[2])]
    assert read["APs"] == ["\N{EN DASH}", ""]  # no small objects; undefined for keypoints
    assert read["APx"] == ["0.250", ""]
    assert read["AR75"][0] == ""


def test_classes(analysis: Analysis) -> None:
    read = rows(tables.classes(analysis.tables[0], 10**6))
    assert [row[:2] for row in read[1:]] == [["boat", "2"], ["kite", "4"], ["person", "3"], ["kiwi", "none"]]
    assert read[-1][2] == "\N{EN DASH}"
    short = tables.classes(analysis.tables[0], len(tables.classes(analysis.tables[0], 10**6)) // 2)
    assert 1 < len(rows(short)) < 5
    assert "more classes are in classes.json" in short


def test_errors(analysis: Analysis) -> None:
    table = analysis.tables[0]
    assert table.errors is not None
    read = {row[0]: row[1:3] for row in rows(tables.errors(table))}
    (wrong_class,) = [cells for name, cells in read.items() if name.startswith("wrong class it")]
    assert wrong_class == ["1", f"+{table.errors.gains['classification']:.3f}"]
    worse = TideErrors(0.5, {**table.errors.gains, "duplicate": -0.01}, table.errors.counts)
    markup = tables.errors(dataclasses.replace(table, errors=worse))
    assert "-0.010" in markup
    assert "width:-" not in markup


def test_averages_of_the_curves_are_those_of_the_table(analysis: Analysis) -> None:
    for table in analysis.tables:
        averages = re.findall(r"<b>([^<]*)</b>", charts.curves(table))
        assert averages == [f"{table.metrics[name]:.3f}" for name in ("AP50", "AP75", "AP")]


def levels(markup: str, classes: int) -> np.ndarray:
    """The levels (C, 3, recalls) that report.js reads; 255 is undefined."""
    (encoded,) = re.findall(r'data-precision="([^"]*)"', markup)
    return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(classes, 3, -1)


def test_curves_of_one_class(analysis: Analysis) -> None:
    table = analysis.tables[1]
    markup = charts.curves(table)
    read = levels(markup, 4)
    assert read.shape == (4, 3, 101)
    for k in range(3):
        np.testing.assert_allclose(read[k, 0] / 200, table.precision[0, :, k], atol=0.0025)
        np.testing.assert_allclose(read[k, 2] / 200, table.precision[:, :, k].mean(axis=0), atol=0.0025)
    assert (read[3] == 255).all()
    (averages,) = re.findall(r'data-averages="([^"]*)"', markup)
    expected = [[one.AP50, one.AP75, one.AP] for one in table.classes]
    np.testing.assert_allclose(json.loads(averages), expected, atol=5.1e-5)


def test_curves_of_many_classes_are_coarser(analysis: Analysis) -> None:
    rng = np.random.default_rng(0)
    many = dataclasses.replace(analysis.tables[0], precision=rng.random((10, 101, 1203)))
    read = levels(charts.curves(many), 1203)
    assert read.shape == (1203, 3, 51)
    np.testing.assert_allclose(read[7, 0] / 200, many.precision[0, ::2, 7], atol=0.0025)


def test_histogram(analysis: Analysis) -> None:
    markup = charts.histogram(analysis.tables[0], 0.5)
    assert "score 0.95 to 1.00: 3 correct, 0 wrong" in markup
    correct, wrong = analysis.tables[0].histogram
    assert markup.count("<rect") == np.count_nonzero(correct) + np.count_nonzero(wrong)


def test_small_confusion_matrix_is_complete(analysis: Analysis) -> None:
    table = analysis.tables[1]
    read = rows(tables.matrix(table, analysis.categories))
    assert [row[0] for row in read[1:]] == ["boat", "kite", "person", "kiwi", "background"]
    counts = [[int(cell or 0) for cell in row[1:]] for row in read[1:]]
    np.testing.assert_array_equal(counts, table.confusion)


@pytest.fixture
def large() -> tuple[np.ndarray, list[Category]]:
    """Forty classes, of which 20 is often confused with 30."""
    counts = np.random.default_rng(0).integers(0, 3, (41, 41))
    counts[20, 30] = 500
    return counts, [Category(k, f"class {k}", 1) for k in range(40)]


def test_large_confusion_matrix_keeps_its_sums(analysis: Analysis, large: tuple[np.ndarray, list[Category]]) -> None:
    counts, categories = large
    table = dataclasses.replace(analysis.tables[0], confusion=counts)
    read = rows(tables.matrix(table, categories))
    names = [row[0] for row in read[1:]]
    assert len(names) == 18
    assert {"class 20", "class 30", "other classes", "background"} <= set(names)
    shown = np.array([[int((cell or "0").replace(",", "")) for cell in row[1:]] for row in read[1:]])
    assert shown.sum() == counts.sum()
    assert shown[names.index("class 20"), names.index("class 30")] == 500
    np.testing.assert_array_equal(shown[-1, -1], counts[-1, -1])
    assert shown[:, -1].sum() == counts[:, -1].sum()


def test_most_frequent_confusions(analysis: Analysis, large: tuple[np.ndarray, list[Category]]) -> None:
    counts, categories = large
    table = dataclasses.replace(analysis.tables[0], confusion=counts)
    read = rows(tables.most_frequent(table, categories))
    assert read[1] == ["class 20", "class 30", "500", f"{100 * 500 / counts[20].sum():.0f}%"]
    assert len(read) == 11
    assert tables.most_frequent(analysis.tables[0], analysis.categories) == ""  # none twice
