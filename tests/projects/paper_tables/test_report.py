"""Tables of made-up results, worked out by hand."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from projects.paper_tables import report
from projects.paper_tables.report import Result
from projects.paper_tables.tables import Row, Table, table

MADE = Table(
    "9",
    "Made up",
    "some split",
    ("segm/AP", "bbox/AP"),
    (
        Row("first", "First", {"segm/AP": 20.0, "bbox/AP": 30.0}),
        Row("second", "Second", {"segm/AP": 25.0}),
        Row("third", "Third", {"segm/AP": 10.0, "bbox/AP": 12.0}),
    ),
    "first",
    ("model.roi.pooling",),
)


def result(seed: int, segm: float, bbox: float = -1.0, seconds: float = 60.0) -> Result:
    return Result(seed, {"segm/AP": segm, "bbox/AP": bbox}, seconds)


RESULTS = {
    "first": [result(0, 0.40, 0.5), result(1, 0.44, 0.52, seconds=100)],
    "second": [result(0, 0.63, seconds=300)],
    "third": [],
}


@pytest.mark.parametrize(
    ("values", "expected"), [((), None), ((3.0,), None), ((3.0, 5.0), 1.0), ((2.0, 4.0, 6.0), 2.0), ((1.0,) * 4, 0.0)]
)
def test_spread_is_half_the_range_of_two_and_the_deviation_of_more(values, expected):
    assert report.spread(values) == expected


def test_gain_is_in_percent_of_the_reference():
    assert report.gain(25.0, 20.0) == pytest.approx(25.0)
    assert report.gain(None, 20.0) is report.gain(20.0, None) is report.gain(20.0, 0.0) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "60 seconds"), (300, "5 minutes"), (5400, "1.5 hours"), (89.0, "89 seconds")]
)
def test_durations_are_said_in_words(seconds, text):
    assert report.duration(seconds) == text


def test_markdown():
    assert report.markdown(MADE, RESULTS) == (
        "## Table 9: Made up\n\n"
        "The paper: some split.\n\n"
        "| table 9 | mask AP | box AP | gain | seeds | time |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| First | 20.0 / 42.0 ± 2.0 | 30.0 / 51.0 ± 1.0 | - | 2 | 80 seconds |\n"
        "| Second | 25.0 / 63.0 | - | +25.0 % / +50.0 % | 1 | 5 minutes |\n"
        "| Third | 10.0 / - | 12.0 / - | -50.0 % / - | 0 | - |\n\n"
        "The paper's number, then ours (mean of the seeds). ± is half the range of two seeds. Gain: relative change of"
        " mask AP against First, the paper's and ours. Time: of one run, evaluation included.\n"
    )


def test_rows_that_the_scale_does_not_have_are_not_there():
    text = report.markdown(MADE, {"second": [result(seed, 0.1 * seed) for seed in (1, 2, 3)]})
    assert "First |" not in text
    assert "| Second | 25.0 / 20.0 ± 10.0 | - | +25.0 % / - | 3 | 60 seconds |" in text
    assert "± is the standard deviation of three or more seeds." in text


def test_both_spreads_are_named_where_there_are_both():
    some = {"first": [result(0, 0.1), result(1, 0.2)], "second": [result(seed, 0.1) for seed in range(3)]}
    assert "± is half the range of two seeds or the standard deviation of three or more seeds." in report.note(
        MADE, some
    )
    assert "±" not in report.note(MADE, {"first": [result(0, 0.1)]})


@pytest.mark.parametrize("plain", [False, True])
def test_the_table_is_shown_with_and_without_rich(capsys, monkeypatch, plain):
    if plain:
        monkeypatch.setitem(sys.modules, "rich", None)
    report.show(MADE, RESULTS)
    said = capsys.readouterr().out
    assert "Table 9: Made up (some split)" in said
    assert "20.0 / 42.0 ± 2.0" in said
    assert "+25.0 % / +50.0 %" in said
    assert "half the range of two seeds" in " ".join(said.split())


@pytest.mark.medium
@pytest.mark.parametrize("name", ["2c", "2d", "6"])
def test_the_picture_is_a_png(name):
    some = table(name)
    made = {row.name: [Result(0, dict.fromkeys(some.columns, 0.3), 1.0)] for row in some.rows}
    picture = cv2.imdecode(np.frombuffer(report.picture(some, made), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 1320
    assert picture.std() > 10
