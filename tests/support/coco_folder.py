"""A small COCO dataset on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mrcnn_jax.config import Config, DataConfig, SplitConfig, TrainConfig

KEYPOINTS = {
    "keypoints": ["nose", "left_tip", "right_tip"],
    "skeleton": [[1, 2], [1, 3]],
}  # of the kites, see `add_keypoints`
CATEGORIES = [{"id": 20, "name": "kite"}, {"id": 3, "name": "boat"}]
SIZES = [(40, 60), (60, 40), (48, 64), (64, 48), (50, 50), (30, 64), (64, 64)]  # height, width


class CocoFolder:
    """Seven random images with two polygons each; `content` may be changed before `save`."""

    def __init__(self, root: Path):
        self.root = root
        (root / "images").mkdir(parents=True)
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        rng = np.random.default_rng(0)
        for i, (height, width) in enumerate(SIZES):
            image_id, name = 100 - i, f"{i}.png"
            cv2.imwrite(str(root / "images" / name), rng.integers(0, 256, (height, width, 3), np.uint8))
            self.content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
            self.add(image_id, [4, 6, 20, 10], category_id=3)
            self.add(image_id, [10.5, 2.5, 15, 24], category_id=20)

    def add(self, image_id: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
        """Append an annotation, by default with its box as polygon."""
        x, y, w, h = bbox
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotation = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": 3,
            "bbox": bbox,
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [polygon],
            **fields,
        }
        self.content["annotations"].append(annotation)
        return annotation

    def add_keypoints(self) -> None:
        """Add keypoints to the kites: nose (visible), left tip (hidden), right tip (not labeled)."""
        self.content["categories"] = [{**c, **KEYPOINTS} if c["id"] == 20 else c for c in CATEGORIES]
        for annotation in self.content["annotations"]:
            if annotation["category_id"] == 20:
                annotation["keypoints"] = [12, 4, 2, 20, 10, 1, 0, 0, 0]

    def save(self) -> Path:
        path = self.root / "coco.json"
        path.write_text(json.dumps(self.content))
        return path

    def config(self, **data: Any) -> Config:
        """Save the JSON; return a configuration with this dataset and small buckets."""
        self.save()
        split = SplitConfig("coco.json", "images")
        fields: dict[str, Any] = {
            "root": str(self.root),
            "train": split,
            "eval": split,
            "cache_dir": str(self.root / "cache"),
            "buckets": ((64, 64), (64, 96), (96, 64)),
            "shortest_edge_train": (48, 64),
            "shortest_edge_eval": 64,
            "longest_edge": 90,
            "max_instances": 4,
            "mask_size": 16,
        }
        return Config(data=DataConfig(**{**fields, **data}), train=TrainConfig(batch_size=2, seed=5))
