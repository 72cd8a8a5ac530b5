"""The scores of each class: a file for programs, a table for people."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

from etils import epath

from mrcnn_jax.evaluation.analysis.class_tables import class_scores
from mrcnn_jax.evaluation.coco_metrics import HEADINGS, Scores

FILE = "classes.json"
MAX_CLASSES = 100  # classes that a terminal is asked to show
_GAP = "   "


def write(scores: Scores, path: epath.Path) -> None:
    """Write `{"bbox": [{"category_id": 1, "name": "person", "instances": 3, "AP": 0.5, "AP50": ...}, ...], ...}`.

    A class is in the order of the category ids; -1 stands for "no such ground truth".
    """
    tables = {name: [dataclasses.asdict(row) for row in class_scores(scores, name)] for name in scores.evaluations}
    path.write_text(json.dumps(tables, indent=1) + "\n")


def format_table(path: epath.Path) -> str:
    """The AP of each class in the file that `write` wrote, in as many columns as the terminal has room for.

    Empty for one class alone, of which the tables have said everything.
    """
    tables: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    rows = next(iter(tables.values()))
    if len(rows) == 1:
        return ""
    if len(rows) > MAX_CLASSES:
        return f"the scores of the {len(rows)} classes are in {path}"
    names = ["class", *(row["name"] for row in rows)]
    counts = ["instances", *(str(max(table[i]["instances"] for table in tables.values())) for i in range(len(rows)))]
    scores = [[HEADINGS[name].lower(), *(_shown(row["AP"]) for row in table)] for name, table in tables.items()]
    cells = [_aligned(names, left=True), *(_aligned(column) for column in (counts, *scores))]
    heading, *lines = [" ".join(line) for line in zip(*cells, strict=True)]
    return "\n".join(["AP of each class", *_side_by_side(heading, lines)])


def _shown(ap: float) -> str:
    return "-" if ap < 0 else f"{ap:.3f}"


def _aligned(column: list[str], *, left: bool = False) -> list[str]:
    width = max(len(cell) for cell in column)
    return [cell.ljust(width) if left else cell.rjust(width) for cell in column]


def _side_by_side(heading: str, lines: list[str]) -> list[str]:
    """Lines of one width in columns, filled from top to bottom, each under its heading."""
    room = shutil.get_terminal_size((100, 24)).columns
    most = max(1, (room + len(_GAP)) // (len(heading) + len(_GAP)))
    height = -(-len(lines) // most)
    columns = [[heading, *lines[start : start + height]] for start in range(0, len(lines), height)]
    return [_GAP.join(column[row] for column in columns if row < len(column)).rstrip() for row in range(height + 1)]
