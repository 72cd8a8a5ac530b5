"""Categories of PASCAL VOC, Cityscapes and LVIS v0.5, by category id, in the order of Detectron2's classes.

Sources: detectron2 02b5c4e, data/datasets/pascal_voc.py, cityscapes.py and lvis_v0_5_categories.py. LVIS's names are as
mmdetection 2.4.0 lists them; the beginning, middle and end were compared with Detectron2's list.
"""

from __future__ import annotations

from pathlib import Path

_VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC = dict(enumerate(_VOC_NAMES, 1))
# The eight classes that Cityscapes' benchmark evaluates, with its own ids.
CITYSCAPES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


def lvis_v0_5() -> dict[int, str]:
    """Return the 1230 categories of LVIS v0.5 (Gupta et al. 2019), spelled as in its files."""
    names = Path(__file__).with_name("lvis_v0_5_categories.txt").read_text(encoding="utf-8")
    return dict(enumerate(names.splitlines(), 1))
