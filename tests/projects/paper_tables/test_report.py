"""Tables of made-up results, against values computed by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from projects.paper_tables import report
from projects.paper_tables.report import RunResult
from projects.paper_tables.tables import PaperTable, TableRow, table

TABLE = PaperTable(
    "9",
    "Made up",
    "some split",
    ("segm/AP", "bbox/AP"),
    (
        TableRow("first", "First", {"segm/AP": 20.0, "bbox/AP": 30.0}),
        TableRow("second", "Second", {"segm/AP": 25.0}),
        TableRow("third", "Third", {"segm/AP": 10.0, "bbox/AP": 12.0}),
    ),
    "first",
    ("model.roi.pooling",),
)


def result(seed: int, segm: float, bbox: float = -1.0, seconds: float = 60.0) -> RunResult:
    return RunResult(seed, {"segm/AP": segm, "bbox/AP": bbox}, seconds)


RESULTS = {
    "first": [result(0, 0.40, 0.5), result(1, 0.44, 0.52, seconds=100)],
    "second": [result(0, 0.63, seconds=300)],
    "third": [],
}


@pytest.mark.parametrize(
    ("values", "expected"), [((), None), ((3.0,), None), ((3.0, 5.0), 1.0), ((2.0, 4.0, 6.0), 2.0), ((1.0,) * 4, 0.0)]
)
def test_spread(values, expected):
    assert report.spread(values) == expected


def test_relative_gain():
    assert report.relative_gain(25.0, 20.0) == pytest.approx(25.0)
    assert (
        report.relative_gain(None, 20.0) is report.relative_gain(20.0, None) is report.relative_gain(20.0, 0.0) is None
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "60 seconds"), (300, "5 minutes"), (5400, "1.5 hours"), (89.0, "89 seconds")]
)
def test_format_duration(seconds, text):
    assert report.format_duration(seconds) == text


def test_markdown():
    assert report.markdown(TABLE, RESULTS) == (
        "## Table 9: Made up\n\n"
        "Setting of the paper: some split.\n\n"
        "| table 9 | mask AP | box AP | gain | seeds | time |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| First | 20.0 / 42.0 ± 2.0 | 30.0 / 51.0 ± 1.0 | - | 2 | 80 seconds |\n"
        "| Second | 25.0 / 63.0 | - | +25.0 % / +50.0 % | 1 | 5 minutes |\n"
        "| Third | 10.0 / - | 12.0 / - | -50.0 % / - | 0 | - |\n\n"
        "Published / reproduced (mean over seeds). ± is half the range of two seeds. Gain: relative change of"
        " mask AP over First, published / reproduced. Time: of one run with evaluation.\n"
    )


def test_rows_without_results_are_omitted():
    text = report.markdown(TABLE, {"second": [result(seed, 0.1 * seed) for seed in (1, 2, 3)]})
    assert "First |" not in text
    assert "| Second | 25.0 / 20.0 ± 10.0 | - | +25.0 % / - | 3 | 60 seconds |" in text
    assert "± is the standard deviation of three or more seeds." in text


def test_caption_explains_both_kinds_of_spread():
    some = {"first": [result(0, 0.1), result(1, 0.2)], "second": [result(seed, 0.1) for seed in range(3)]}
    assert "± is half the range of two seeds or the standard deviation of three or more seeds." in report.caption(
        TABLE, some
    )
    assert "±" not in report.caption(TABLE, {"first": [result(0, 0.1)]})


def test_print_table(capsys):
    report.print_table(TABLE, RESULTS)
    said = capsys.readouterr().out
    assert "Table 9: Made up (some split)" in said
    assert "20.0 / 42.0 ± 2.0" in said
    assert "+25.0 % / +50.0 %" in said
    assert "half the range of two seeds" in " ".join(said.split())


@pytest.mark.medium
@pytest.mark.parametrize("name", ["2c", "2d", "6"])
def test_plot_is_a_png(name):
    paper_table = table(name)
    results = {row.name: [RunResult(0, dict.fromkeys(paper_table.columns, 0.3), 1.0)] for row in paper_table.rows}
    image = cv2.imdecode(np.frombuffer(report.plot(paper_table, results), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] == 1320
    assert image.std() > 10
