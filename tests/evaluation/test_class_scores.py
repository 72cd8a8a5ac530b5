"""The table of class scores in the terminal."""

from __future__ import annotations

import json
import re

import pytest

from mrcnn_jax.evaluation import class_scores


@pytest.fixture
def file(tmp_path):
    """A function that writes class scores: the first class has no instances, the others AP 0.5 (masks 0.45)."""

    def write(count):
        rows = [
            {"category_id": i, "name": f"thing {i}", "instances": 3 * i, "AP": 0.5 if i else -1} for i in range(count)
        ]
        masks = [{**row, "AP": row["AP"] * 0.9 if row["instances"] else -1} for row in rows]
        (tmp_path / class_scores.FILE).write_text(json.dumps({"bbox": rows, "segm": masks}))
        return tmp_path / class_scores.FILE

    return write


def test_classes_are_listed_in_order(file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert class_scores.format_table(file(3)).splitlines() == [
        "AP of each class",
        "class   instances boxes masks",
        "thing 0         0     -     -",
        "thing 1         3 0.500 0.450",
        "thing 2         6 0.500 0.450",
    ]


@pytest.mark.parametrize(("width", "columns"), [(20, 1), (61, 1), (63, 2), (100, 3), (130, 4)])
def test_columns_fit_the_terminal(file, monkeypatch, width, columns):
    monkeypatch.setenv("COLUMNS", str(width))
    _, names, *lines = class_scores.format_table(file(80)).splitlines()
    assert names.count("instances") == columns
    assert len(lines) == -(-80 // columns)
    assert width == 20 or max(map(len, [names, *lines])) <= width
    shown = [int(number) for line in lines for number in re.findall(r"thing (\d+)", line)]
    assert sorted(shown) == list(range(80))
    assert shown[:columns] == [i * len(lines) for i in range(columns)]  # down the columns


def test_no_table_of_one_class_or_too_many(file):
    assert class_scores.format_table(file(1)) == ""
    text = class_scores.format_table(file(101))
    assert "101 classes" in text
    assert class_scores.FILE in text
