"""Recipes of the rows of the Mask R-CNN paper's tables, in the paper's setting on COCO 2017.

    mrcnn train --config=projects/paper_tables/config.py:2c_roi_align_average --config.data.root=COCO
      --config.init=R-50.pkl --workdir=DIR

The argument is the table and the name of the row. docs/paper.md lists the rows, their published values, the differences
from the paper, and the command that trains all rows of a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mrcnn_jax.config import Config

sys.path.append(str(Path(__file__).resolve().parents[2]))  # `projects` is not installed

from projects.paper_tables import coco


def get_config(row: str) -> Config:
    """Return the recipe of a row, such as "2c_roi_align_average". Raises ConfigError if there is none."""
    table, _, name = row.partition("_")
    return coco.row(table, name)
