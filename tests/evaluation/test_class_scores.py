"""The table of classes as a terminal shows it."""

from __future__ import annotations

import json
import re

import pytest

from mrcnn_jax.evaluation import class_scores


@pytest.fixture
def file(tmp_path):
    """A file of so many classes; the first has no truth, the others an AP of .500 and the masks of a tenth less."""

    def write(count):
        rows = [
            {"category_id": i, "name": f"thing {i}", "instances": 3 * i, "AP": 0.5 if i else -1} for i in range(count)
        ]
        masks = [{**row, "AP": row["AP"] * 0.9 if row["instances"] else -1} for row in rows]
        (tmp_path / class_scores.FILE).write_text(json.dumps({"bbox": rows, "segm": masks}))
        return tmp_path / class_scores.FILE

    return write


def test_classes_stand_in_their_order_one_below_the_other(file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert class_scores.format_table(file(3)).splitlines() == [
        "AP of each class",
        "class   instances boxes masks",
        "thing 0         0     -     -",
        "thing 1         3 0.500 0.450",
        "thing 2         6 0.500 0.450",
    ]


@pytest.mark.parametrize(("width", "columns"), [(20, 1), (61, 1), (63, 2), (100, 3), (130, 4)])
def test_as_many_columns_as_there_is_room_for(file, monkeypatch, width, columns):
    monkeypatch.setenv("COLUMNS", str(width))
    _, names, *lines = class_scores.format_table(file(80)).splitlines()
    assert names.count("instances") == columns
    assert len(lines) == -(-80 // columns)
    assert width == 20 or max(map(len, [names, *lines])) <= width
    shown = [int(number) for line in lines for number in re.findall(r"thing (\d+)", line)]
    assert sorted(shown) == list(range(80))
    assert shown[:columns] == [i * len(lines) for i in range(columns)]  # down the columns


def test_one_class_needs_no_table_and_a_thousand_find_none(file):
    assert class_scores.format_table(file(1)) == ""
    said = class_scores.format_table(file(101))
    assert "101 classes" in said
    assert class_scores.FILE in said
