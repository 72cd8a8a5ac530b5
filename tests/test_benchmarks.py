"""The comparison of benchmarks with torchvision: cases, worker processes, printed table."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the package

from benchmarks import compare, turns, work  # noqa: E402


def cases():
    limits = [case for pair in compare.LIMITS.values() for case in pair]
    return [*limits, *(case for cases_of_set in compare.SETS.values() for case in cases_of_set)]


@pytest.mark.parametrize("side", ["side_ours", "side_peer"])
def test_both_sides_implement_every_case(side):
    """Parses the modules, because torchvision may not be installed."""
    tree = ast.parse((ROOT / "benchmarks" / f"{side}.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {case.task for case in cases()} <= functions


def test_names_of_cases_are_unique():
    for cases_of_set in compare.SETS.values():
        assert len({str(case) for case in cases_of_set}) == len(cases_of_set)


def test_copies_of_objects_are_positive():
    case = work.Case("training", 2, 128, 160)
    objects, copies = work.objects(case), work.copies(case)
    originals = objects.repeat(work.COPIES, axis=1)
    low = np.maximum(originals[..., :2], copies[..., :2])
    high = np.minimum(originals[..., 2:], copies[..., 2:])
    common = (high - low).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (originals, copies)]
    assert (common / (areas[0] + areas[1] - common)).min() > 0.5


SIDE = """
import time
from benchmarks.turns import Task, serve
serve(lambda seconds: Task(lambda: time.sleep(seconds), {"flop": 3.0}))
"""


def test_worker_process_answers_and_reports_its_end():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    side = turns.Side([sys.executable, "-c", SIDE], environment)
    assert side.ask({"seconds": 0.05}) == {"flop": 3.0}
    answer = side.ask({})
    assert 0.05 <= answer["seconds"] < 5
    assert answer["peak"] > 1
    side.close()
    broken = turns.Side([sys.executable, "-c", "raise SystemExit(3)"], environment)
    with pytest.raises(RuntimeError, match="status 3"):
        broken.ask({})


@pytest.mark.slow
def test_comparison_prints_a_table():
    command = [sys.executable, "-m", "benchmarks.compare", "--set=small", "--rows=matching", "--rounds=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "GFLOP/s" in result.stdout
    row = result.stdout.splitlines()[-1]
    assert row.startswith("| matching 128x160 | 0.")
    assert row.count("|") == len(compare.COLUMNS) + 1
