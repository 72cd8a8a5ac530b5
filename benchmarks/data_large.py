"""Enlarged copies of photographs, to the size of camera images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2

from mrcnn_jax.config import SplitConfig

_NUM_IMAGES = 16
_LONG, _SHORT = 4000, 3000


def write_large(folder: Path, split: SplitConfig, target: Path) -> Path:
    """Write the first images of a COCO folder and their polygons, enlarged to 4000x3000; return `target`."""
    content = json.loads((folder / split.annotations).read_text())
    (target / "images").mkdir(parents=True)
    images, annotations = [], []
    for image in content["images"][:_NUM_IMAGES]:
        wide = image["width"] >= image["height"]
        width, height = (_LONG, _SHORT) if wide else (_SHORT, _LONG)
        pixels = cv2.imread(str(folder / split.images / image["file_name"]))
        name = f"{image['id']}.jpg"
        cv2.imwrite(str(target / "images" / name), cv2.resize(pixels, (width, height)), [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": image["id"], "file_name": name, "height": height, "width": width})
        scale = (width / image["width"], height / image["height"])
        instances = (a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"])
        annotations += [_enlarge(annotation, scale) for annotation in instances]
    enlarged = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (target / "annotations.json").write_text(json.dumps(enlarged))
    return target


def _enlarge(annotation: dict[str, Any], scale: tuple[float, float]) -> dict[str, Any]:
    """Return the annotation with box and polygons scaled along each axis."""
    return {
        **annotation,
        "bbox": [value * scale[i % 2] for i, value in enumerate(annotation["bbox"])],
        "segmentation": [[v * scale[i % 2] for i, v in enumerate(p)] for p in annotation["segmentation"]],
    }
