"""Scores of each class, as a JSON file and as a table for the terminal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

from etils import epath

from mrcnn_jax.evaluation.analysis.class_tables import class_scores
from mrcnn_jax.evaluation.coco_metrics import HEADINGS, Scores

FILE = "classes.json"
MAX_CLASSES = 100  # of a table in the terminal
_GAP = "   "


def write(scores: Scores, path: epath.Path) -> None:
    """Write `{"bbox": [{"category_id": 1, "name": "person", "instances": 3, "AP": 0.5, "AP50": ...}, ...], ...}`.

    Classes are in the order of their category ids; -1 means that there is no such ground truth.
    """
    tables = {name: [dataclasses.asdict(row) for row in class_scores(scores, name)] for name in scores.evaluations}
    path.write_text(json.dumps(tables, indent=1) + "\n")


def format_table(path: epath.Path) -> str:
    """Format the AP of each class in a file of `write`, in as many columns as fit the terminal.

    Empty for a single class, whose scores are those of the main tables.
    """
    tables: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    rows = next(iter(tables.values()))
    if len(rows) == 1:
        return ""
    if len(rows) > MAX_CLASSES:
        return f"the scores of the {len(rows)} classes are in {path}"
    names = ["class", *(row["name"] for row in rows)]
    counts = ["instances", *(str(max(table[i]["instances"] for table in tables.values())) for i in range(len(rows)))]
    scores = [
        [HEADINGS[name].lower(), *("-" if row["AP"] < 0 else f"{row['AP']:.3f}" for row in table)]
        for name, table in tables.items()
    ]
    cells = [[cell.rjust(max(map(len, column))) for cell in column] for column in (counts, *scores)]
    names = [name.ljust(max(map(len, names))) for name in names]
    heading, *lines = [" ".join(line) for line in zip(names, *cells, strict=True)]
    return "\n".join(["AP of each class", *_side_by_side(heading, lines)])


def _side_by_side(heading: str, lines: list[str]) -> list[str]:
    """Arrange lines of equal width in columns, filled from top to bottom, each under the heading."""
    width = shutil.get_terminal_size((100, 24)).columns
    max_columns = max(1, (width + len(_GAP)) // (len(heading) + len(_GAP)))
    height = -(-len(lines) // max_columns)
    columns = [[heading, *lines[start : start + height]] for start in range(0, len(lines), height)]
    return [_GAP.join(column[row] for column in columns if row < len(column)).rstrip() for row in range(height + 1)]
