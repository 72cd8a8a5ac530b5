"""Published weights of torchvision, Detectron2 and Detectron (2018) that a model here can load, by name.

Names are those of the projects: `maskrcnn_resnet50_fpn_v2`, `COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x`. A part of
a name is enough if no other name has it: `mask_rcnn_R_50_FPN_3x`.

Sources: torchvision 0.29.2, models/ and models/detection/; detectron2 02b5c4e, MODEL_ZOO.md and checkpoint/catalog.py;
Detectron 04155a0, MODEL_ZOO.md. Each average precision (AP) is the published one, on the validation set of `data`.
"""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

from mrcnn_jax.errors import ConfigError

Source = Literal["torchvision", "detectron2", "detectron"]

_TORCHVISION = "https://download.pytorch.org/models/"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_DETECTRON = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
LICENSES: dict[Source, str] = {
    "torchvision": "BSD-3-Clause",
    "detectron2": "CC BY-SA 3.0",
    "detectron": "CC BY-SA 3.0",
}


class ZooEntry(NamedTuple):
    """A published file of weights."""

    name: str
    source: Source
    url: str
    hash_prefix: str  # first digits of the SHA-256 (torchvision) or MD5 (Detectron2) of the file; empty: unknown
    megabytes: float  # of 10^6 bytes
    data: str  # that the model was trained on; "ImageNet": the file has a backbone only
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None

    @property
    def is_detector(self) -> bool:
        """Whether the file has a whole detection model, rather than a backbone."""
        return self.data != "ImageNet"


def _torchvision(
    name: str, file: str, megabytes: float, box: float | None = None, mask: float | None = None, keypoint: float | None = None
) -> ZooEntry:
    data = "ImageNet" if box is None else "COCO"
    prefix = file.removesuffix(".pth").rpartition("-")[2]
    return ZooEntry(name, "torchvision", _TORCHVISION + file, prefix, megabytes, data, box, mask, keypoint)


ENTRIES: tuple[ZooEntry, ...] = (
    _torchvision("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 178.1, 37.9, 34.6),
)


def find(name: str) -> ZooEntry:
    """Return the entry with a name, or with a name of which `name` is the first or last part, if there is only one.

    Raises ConfigError with the nearest names if there is none, and with all names if there are several.
    """
    exact = [entry for entry in ENTRIES if entry.name == name]
    entries = exact or [
        entry for entry in ENTRIES if entry.name.endswith(f"/{name}") or entry.name.startswith(f"{name}/")
    ]
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise ConfigError(f"{name} is the name of several published weights; give one of {names}")
    if not entries:
        parts = {part: entry.name for entry in ENTRIES for part in (entry.name, *entry.name.split("/"))}
        near = list(dict.fromkeys(parts[part] for part in difflib.get_close_matches(name, parts, 5, 0.5)))
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ConfigError(f"there are no published weights {name!r}{hint}; `mrcnn weights list` shows all names")
    return entries[0]
