"""Ground truth converted to a padded batch and back to the image, scored by COCOeval: the loss of the conversion.

The batch is evaluation's: default buckets (800 pixels), masks as crops of 112 x 112 cells of their boxes. The way back
is that of detections, which are made of the ground truth, each with score 1. Crowds are no ground truth, and no image
here has more instances than a batch has slots.

Measured: box AP 1.000, mask AP .995 (small .991, medium .9995, large 1.000). Of 707 masks 17 come back with an IoU
below .95, COCOeval's last threshold, and one of these below .90, the last but one; 15 of the 17 have less than 256
pixels. What is lost, by cause:

- The rasterizer. pycocotools decides on the grid of the photograph which pixels a polygon covers, and on the crop's
  grid which cells. Where both agree on the outline they still differ in pixels that it cuts. An object of 10 to 100
  pixels is mostly such pixels: one of them is 1 to 10 % of its area.
- The crop. Outlines of objects larger than 112 pixels are drawn with cells wider than a pixel: mean IoU .987 for those
  above 96 x 96 pixels, where crops of 224 x 224 have .994 (and AP .997). It costs no AP.
- Instances of several thin parts (one of seven parts, IoU .92): each has an outline of its own.

Nothing is lost by the scale to 800 pixels: masks are drawn from the scaled polygon, and boxes come back to 1e-4 pixels.
A perfect mask head of 28 x 28 cells, which has learned its targets, loses more: see the second test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import Config, DataConfig, MaskHeadConfig, ModelConfig, SplitConfig
from mrcnn_jax.data import eval_batches, load_split
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.evaluation.coco_metrics import score
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.ops.masks import crop_targets
from mrcnn_jax.structures import Batch, Detections, GroundTruth

pytestmark = pytest.mark.medium


class RoundTrip:
    """The 80 photographs, as batches of evaluation; `score` takes masks back to them."""

    def __init__(self, folder: Path, cache: Path):
        split = SplitConfig("annotations.json", "images")
        data = DataConfig(root=str(folder), train=split, eval=split, cache_dir=str(cache))
        self.dataset: Dataset = load_split(data, "eval")
        ids, names = self.dataset.categories.ids, self.dataset.categories.names
        self.model = ModelConfig(num_classes=len(ids), category_ids=ids, category_names=names, mask=MaskHeadConfig())
        with eval_batches(self.dataset, Config(data=data, model=self.model)) as batches:
            self.batches: list[Batch] = list(batches)

    def score(self, masks_of: Callable[[GroundTruth], np.ndarray]) -> dict[str, float]:
        """COCOeval's numbers for detections that are the ground truth, with `masks_of` it (N, S, S) as their masks."""
        records = []
        for batch in self.batches:
            for slot in np.flatnonzero(batch.valid):
                truth = GroundTruth(*(field[slot] for field in batch.ground_truth))
                index = int(batch.indices[slot])
                height, width = self.dataset.sizes[index].tolist()
                detections = as_detections(truth, masks_of(truth))
                prediction = postprocess(detections, batch.image_sizes[slot], (height, width), self.model)
                records += prediction.to_coco(int(self.dataset.ids[index]))
        return score(self.dataset.annotations_path, records).metrics


@pytest.fixture(scope="module")
def round_trip(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> RoundTrip:
    return RoundTrip(shared_data("coco_by"), tmp_path_factory.mktemp("cache"))


def as_detections(truth: GroundTruth, masks: np.ndarray) -> Detections:
    """What a perfect network would say of one image."""
    return Detections(
        boxes=truth.boxes,
        scores=np.ones(len(truth.valid), np.float32),
        classes=truth.classes,
        masks=masks.astype(np.float32),
        keypoints=np.zeros((len(truth.valid), 0, 3), np.float32),
        valid=truth.valid,
        truncated=np.array(False),
    )


def test_every_image_and_every_instance_is_in_the_batches(round_trip):
    seen = np.concatenate([batch.indices[batch.valid] for batch in round_trip.batches])
    assert sorted(seen) == list(range(80))
    instances = sum(int(batch.ground_truth.valid[batch.valid].sum()) for batch in round_trip.batches)
    assert instances == round_trip.dataset.instances.sum() == 707


def test_boxes_and_masks_come_back_to_the_photographs(round_trip):
    scores = round_trip.score(lambda truth: truth.masks)
    assert scores["bbox/AP"] >= 0.995
    assert scores["segm/AP"] >= 0.98
    assert scores["segm/APl"] >= 0.995  # a crop of 112 is enough for large objects
    assert scores["segm/APs"] >= 0.98


@pytest.mark.slow  # `test_mask_crops.py` compares such targets with exact ones
def test_targets_of_the_mask_head_come_back_almost_as_well(round_trip):
    """The most that a head of 28 x 28 cells can reach on these boxes, AP .950: a bound, not a loss of ours."""

    @jax.jit
    def targets(truth: GroundTruth) -> jax.Array:
        whole = jnp.arange(len(truth.valid))
        samples = MaskHeadConfig().target_sampling_ratio
        settings = {"size": 28, "binary": True, "aligned": True, "sampling_ratio": samples}
        return crop_targets(truth.masks, truth.mask_windows, truth.boxes, whole, **settings)

    scores = round_trip.score(lambda truth: np.asarray(targets(truth)))
    assert scores["segm/AP75"] >= 0.995
    assert scores["segm/AP"] >= 0.93
