"""Reports as JSON, and the table in docs/verified.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mrcnn_jax.cli import main
from mrcnn_jax.errors import DataError
from mrcnn_jax.tools.verify.report import Report, read_json, to_json, to_markdown
from mrcnn_jax.weights import zoo

DOCS = Path(__file__).resolve().parents[3] / "docs"
REPORT = Report(
    name="maskrcnn_resnet50_fpn",
    weights="bf2d0c1e" * 8,
    data="0123456789abcdef",
    overrides=[],
    version="0.2.0",
    published={"bbox": 37.9, "segm": 34.6},
    images=5000,
    date="2026-12-01",
    software="jax 0.10",
    hardware="a computer",
    command="mrcnn verify maskrcnn_resnet50_fpn --data=coco",
    measured={"bbox": 37.87, "segm": 34.49},
    seconds=1234.5,
)


def test_reports_are_read_as_they_were_written(tmp_path):
    reports = [REPORT, replace(REPORT, measured={"bbox": 37.7, "segm": 34.6})]
    path = tmp_path / "report.json"
    path.write_text(to_json(reports))
    assert read_json(path) == reports
    assert [entry["passed"] for entry in json.loads(path.read_text())] == [True, False]


@pytest.mark.parametrize("content", ["{", "[1]", "[{}]", "{}x", json.dumps([{**vars(REPORT), "measured": {}}])])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json is not a report of `mrcnn verify`"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"b\.json cannot be read"):
        read_json(tmp_path / "b.json")


def test_markdown_has_all_that_a_reader_needs():
    text = to_markdown([REPORT])
    assert "| maskrcnn_resnet50_fpn | masks | 34.6 | 34.49 | -0.10 | 0.10 | pass |" in text
    facts = ("5000 images", "1234 s", "2026-12-01", "a computer", "jax 0.10", "bf2d0c1ebf2d0c1e", f"`{REPORT.command}`")
    assert all(fact in text for fact in facts)


def test_the_table_of_reports(tmp_path, capsys):
    part = replace(REPORT, images=500, deviations={"bbox": 0.1, "segm": 0.1}, measured={"bbox": 36.04, "segm": 34.6})
    path = tmp_path / "report.json"
    path.write_text(to_json([REPORT, part]))
    assert main(["verify", "--table", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.startswith("| maskrcnn_resnet50_fpn |")]
    assert row == (
        "| maskrcnn_resnet50_fpn | COCO | boxes 37.9, masks 34.6 | boxes 37.9, masks 34.5: pass (0.2.0, 2026-12-01);"
        " boxes 36.0, masks 34.6: **fail** (0.2.0, 500 images, 2026-12-01) |"
    )
    detectors = sum(entry.is_detector for entry in zoo.ENTRIES)
    assert len(lines) == 2 + detectors
    assert sum(line.endswith("| not yet reported |") for line in lines) == detectors - 1


def test_the_table_in_the_documentation_is_that_of_the_command(capsys):
    reports = sorted(map(str, (DOCS / "reports").glob("*.json")))
    assert main(["verify", "--table", *reports]) == 0
    table = capsys.readouterr().out
    assert table in (DOCS / "verified.md").read_text(), "paste the output of `mrcnn verify --table docs/reports/*.json`"
