"""Tests of arbitrary ids and names of custom datasets, from their JSON to the result records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.convert_folders import photograph

from mrcnn_jax.config import Config, DataConfig, EvalConfig, ModelConfig, SplitConfig, from_json, to_json
from mrcnn_jax.data import eval_batches, load_split
from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.structures import Detections
from mrcnn_jax.training.train import with_categories

# Out of order, with gaps, with 0 and a negative one, and more than 16 bits; names of all kinds.
CATEGORIES = {300: "Möwe", 7: "traffic light", -4: 'a, "quoted" name', 0: "鳥 🐦", 70_000: "person"}
IMAGE_IDS = (139, -5, 2**40, 0)
BOXES = ((2, 3, 20, 12), (30, 5, 12, 30), (8, 20, 16, 16), (44, 2, 18, 8), (24, 40, 36, 6))


def write(root: Path) -> dict[str, Any]:
    """A JSON in which nothing is in the order of its ids; two instances of each category over the images."""
    images = []
    annotations = []
    for i, image_id in enumerate(IMAGE_IDS):
        photograph(root / "images" / f"{i}.png", 48, 64)
        images.append({"id": image_id, "file_name": f"{i}.png", "height": 48, "width": 64})
        for j, box in enumerate(BOXES[i % 2 :: 2]):
            x, y, w, h = box
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            category_id = list(CATEGORIES)[(i + 2 * j) % len(CATEGORIES)]
            annotations.append(
                {
                    "id": 1000 - 7 * len(annotations),
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": list(box),
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return content


def detected(config: Config) -> list[Prediction | int]:
    """Ground truth of the batches as what a network finds: image id, prediction, image id, prediction, ..."""
    dataset = load_split(config.data, "eval")
    # As training fills it in, saves it, and evaluation reads it again.
    model = from_json(to_json(with_categories(config, dataset.categories))).model
    coco_metrics.check_categories(model, dataset.categories.ids, dataset.categories.names)
    found: list[Any] = []
    with eval_batches(dataset, config) as batches:
        for batch in batches:
            for slot in np.flatnonzero(batch.valid):
                truth = [field[slot] for field in batch.ground_truth]
                boxes, classes, masks, _, keypoints, valid = truth
                scores = np.full(len(valid), 0.9, np.float32)
                detections = Detections(
                    boxes, scores, classes, masks.astype(np.float32), keypoints, valid, np.zeros((), bool)
                )
                index = batch.indices[slot]
                size = tuple(dataset.sizes[index].tolist())
                found += [int(dataset.ids[index]), postprocess(detections, batch.image_sizes[slot], size, model)]
    return found


@pytest.mark.parametrize("chosen", [(), ("person", "鳥 🐦"), ('a, "quoted" name',)])
def test_ids_and_names_come_back(chosen: tuple[str, ...], tmp_path: Path) -> None:
    content = write(tmp_path)
    data = DataConfig(
        root=str(tmp_path),
        eval=SplitConfig("coco.json", "images"),
        categories=chosen,
        cache_dir=str(tmp_path / "cache"),
        buckets=((64, 96),),
        shortest_edge_eval=60,
        longest_edge=90,
    )
    found = detected(Config(model=ModelConfig(), data=data, eval=EvalConfig(batch_size=3)))
    ids, predictions = found[::2], found[1::2]
    assert sorted(ids) == sorted(IMAGE_IDS)
    for prediction in predictions:
        assert prediction.names == tuple(CATEGORIES[i] for i in prediction.category_ids.tolist())
    records = [record for i, prediction in zip(ids, predictions, strict=True) for record in prediction.to_coco(i)]
    records = json.loads(json.dumps(records))

    def key(entry: dict[str, Any]) -> tuple[int, int, list[int]]:
        return entry["image_id"], entry["category_id"], np.round(entry["bbox"]).astype(int).tolist()

    wanted = [a for a in content["annotations"] if not chosen or CATEGORIES[a["category_id"]] in chosen]
    assert wanted
    assert sorted(map(key, records)) == sorted(map(key, wanted))
    metrics = coco_metrics.score(tmp_path / "coco.json", records, category_names=chosen).metrics
    assert metrics["bbox/AP"] == pytest.approx(1)
    assert metrics["segm/AP"] == pytest.approx(1)


def test_wrong_category_id_loses_only_its_category(tmp_path: Path) -> None:
    """The score above is not 1 whatever the ids are."""
    content = write(tmp_path)
    records = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in content["annotations"]]
    for record in records:
        record["category_id"] = {7: 300, 300: 7}.get(record["category_id"], record["category_id"])
    scores = coco_metrics.score(tmp_path / "coco.json", records, iou_types=["bbox"])
    assert scores.metrics["bbox/AP"] == pytest.approx(3 / 5)
