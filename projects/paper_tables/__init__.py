"""The Mask R-CNN paper's own tables (He et al. 2017): as data, as recipes at two scales, and as runs.

`coco.row("2c", "roi_warp_max")` is a row in the paper's setting, `small.row` the same comparison for a CPU. What
`python -m projects.paper_tables` does is in `run`; docs/paper.md explains it.
"""

from projects.paper_tables import coco, small, tables

__all__ = ["coco", "small", "tables"]
