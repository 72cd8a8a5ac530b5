"""The comparisons with torchvision: tasks, inputs, worker processes, and the table."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not in the package

from benchmarks import cases, compare, interleave  # noqa: E402


def all_cases():
    groups = [*compare.LIMITS.values(), *compare.SETS.values()]
    return [case for group in groups for case in group]


@pytest.mark.parametrize("module", ["bench_ours", "bench_torchvision"])
def test_every_case_has_a_task_in_both_modules(module):
    """Parses the module, because torchvision may not be installed."""
    tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {case.task for case in all_cases()} <= functions


def test_names_of_cases_are_unique():
    for group in compare.SETS.values():
        assert len({str(case) for case in group}) == len(group)


def test_copies_of_objects_are_positive():
    case = cases.Case("training", 2, 128, 160)
    objects, copies = cases.object_boxes(case), cases.jittered_copies(case)
    originals = objects.repeat(cases.NUM_COPIES, axis=1)
    low = np.maximum(originals[..., :2], copies[..., :2])
    high = np.minimum(originals[..., 2:], copies[..., 2:])
    intersection = (high - low).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (originals, copies)]
    assert (intersection / (areas[0] + areas[1] - intersection)).min() > 0.5


def test_ratio_is_to_the_faster_torchvision():
    ours, eager, compiled = (compare.Measurements([second], peak, {}) for second, peak in ((3, 10), (5, 20), (4, 30)))
    limits, case = compare.Limits(1, 1), cases.Case("training", 2)
    row = "| training, 2 images 800x1088 | 3.000 (3.000) |"
    assert compare.table_row(case, [ours], limits) == f"{row} - | - | - | 10 | - | - | - |"
    assert compare.table_row(case, [ours, eager], limits) == f"{row} 5.000 (5.000) | - | 0.60 | 10 | 20 | - | - |"
    both = f"{row} 5.000 (5.000) | 4.000 (4.000) | 0.75 | 10 | 30 | - | - |"
    assert compare.table_row(case, [ours, eager, compiled], limits) == both
    assert compare.table_row(case, [ours, compiled, eager], limits).endswith("| 0.75 | 10 | 30 | - | - |")


def test_torchvision_compiles_its_backbone_only_with_a_compiler(monkeypatch):
    monkeypatch.setattr(compare.shutil, "which", lambda name: name)
    assert [len(compare.side_commands(cases.Case(task), "python")) for task in ("training", "nms")] == [3, 2]
    assert len(compare.side_commands(cases.Case("training"), "python", compiled=False)) == 2
    assert len(compare.side_commands(cases.Case("training"), "")) == 1
    monkeypatch.setattr(compare.shutil, "which", lambda name: None)
    assert len(compare.side_commands(cases.Case("training"), "python")) == 2


WORKER = """
import time
from benchmarks.interleave import Task, serve
serve(lambda seconds: Task(lambda: time.sleep(seconds), {"flop": 3.0}))
"""


def test_worker_answers_and_reports_its_exit():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    worker = interleave.Worker([sys.executable, "-c", WORKER], environment)
    assert worker.request({"seconds": 0.05}) == {"flop": 3.0}
    answer = worker.request({})
    assert 0.05 <= answer["seconds"] < 5
    assert answer["peak"] > 1
    worker.close()
    broken = interleave.Worker([sys.executable, "-c", "raise SystemExit(3)"], environment)
    with pytest.raises(RuntimeError, match="status 3"):
        broken.request({})


@pytest.mark.slow
def test_comparison_prints_a_table():
    command = [sys.executable, "-m", "benchmarks.compare", "--set=small", "--rows=matching", "--rounds=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "GFLOP/s" in result.stdout
    row = result.stdout.splitlines()[-1]
    assert row.startswith("| matching 128x160 | 0.")
    assert row.count("|") == len(compare.COLUMNS) + 1
