"""Ground truth of an image as a `Prediction`, to draw it next to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.mask_crops import crop_masks
from mrcnn_jax.data.sample import make_sample
from mrcnn_jax.inference.postprocess import Prediction

_MASK_SIZE = 112  # of mask crops: the default in training


def read(dataset: Dataset, index: int, model: ModelConfig) -> tuple[NDArray[np.uint8], Prediction]:
    """Read image `index`, uint8 RGB (height, width, 3), and its instances without crowds as a `Prediction`.

    Scores are 1, also of labeled keypoints; those of unlabeled keypoints are 0. Masks are crops inside their boxes, as
    in training. The dataset's categories must be among the model's.
    """
    content, annotations = dataset.record(index)
    image = dataset.decode(content)
    assert image is not None, "an image that was predicted on can be decoded"
    class_of = {category: label for label, category in enumerate(model.category_ids, 1)}
    pose = dataset.categories.keypoint_schema
    size = image.shape[:2]
    sample = make_sample(image, annotations, class_of, size, masks=dataset.has_masks, num_keypoints=len(pose.names))
    keypoints = sample.keypoints.astype(np.float32)
    keypoints[..., 2] = keypoints[..., 2] > 0
    masks = None if sample.masks is None else crop_masks(sample.masks, sample.boxes, _MASK_SIZE).astype(np.float32)
    return image, Prediction(
        image_size=(size[0], size[1]),
        boxes=sample.boxes.astype(np.float32),
        scores=np.ones(len(sample.boxes), np.float32),
        labels=sample.classes,
        category_ids=np.array([model.category_ids[label - 1] for label in sample.classes], np.int64),
        names=tuple(model.category_names[label - 1] for label in sample.classes),
        mask_probabilities=masks,
        keypoints=keypoints if pose.names else None,
        keypoint_names=pose.names,
        skeleton=pose.skeleton,
    )
