"""The tables of the Mask R-CNN paper (He et al. 2017): data, recipes at two scales, and runs.

`coco.row("2c", "roi_warp_max")` is the recipe of a row in the paper's setting, `small.row` that of the same comparison
on a CPU. `run` trains the rows of a table. See docs/paper.md.
"""

from projects.paper_tables import coco, small, tables

__all__ = ["coco", "small", "tables"]
