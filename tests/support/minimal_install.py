"""Lower a training step and inference while the packages in the arguments cannot be imported.

`test_imports.py` runs this in a subprocess.
"""

# ruff: noqa: E402  (imports follow the import hook)

from __future__ import annotations

import functools
import importlib.abc
import sys


class Blocker(importlib.abc.MetaPathFinder):
    """Import hook that makes packages look as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Blocker())

import jax
import numpy as np

import mrcnn_jax
import mrcnn_jax.training.parallel
from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    Config,
    FPNConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import variable_shapes
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import create_state, make_train_step

# The backbone is frozen: without its backward pass the step is built in less time.
CONFIG = Config(
    model=ModelConfig(
        num_classes=2,
        backbone=BackboneConfig("resnet18", width=4, norm="frozen_bn", frozen_stages=5),
        fpn=FPNConfig(4),
        rpn=RPNConfig(4, pre_nms_top_k_train=8, pre_nms_top_k_test=8, post_nms_top_k_train=4, post_nms_top_k_test=4),
        roi=RoIConfig(4, sampling_ratio=1),
        box=BoxHeadConfig(pool_size=2, hidden=4, max_detections=2, nms_candidates=8),
        mask=MaskHeadConfig(pool_size=2, conv_layers=1, channels=4),
    )
)
BATCH = Batch(
    images=np.zeros((1, 64, 64, 3), np.uint8),
    image_sizes=np.full((1, 2), 64, np.int32),
    indices=np.zeros(1, np.int32),
    valid=np.ones(1, bool),
    ground_truth=GroundTruth(
        boxes=np.float32([[[8, 8, 40, 40]]]),
        classes=np.ones((1, 1), np.int32),
        masks=np.ones((1, 1, 8, 8), np.uint8),
        mask_windows=np.float32([[[8, 8, 40, 40]]]),
        keypoints=np.zeros((1, 1, 0, 3), np.float32),
        valid=np.ones((1, 1), bool),
    ),
)


def main() -> None:
    model = mrcnn_jax.build_model(CONFIG.model)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    schedule = make_schedule(CONFIG.optimizer, CONFIG.train.steps)
    optimizer = make_optimizer(CONFIG.optimizer, schedule, variables["params"], frozen_paths(CONFIG.model))
    train_step = make_train_step(model, CONFIG, optimizer, schedule)
    # Lowering imports everything that running would import.
    jax.jit(train_step).lower(create_state(optimizer, variables), BATCH, jax.random.key(0))
    jax.jit(functools.partial(detect, model)).lower(variables, BATCH.images, BATCH.image_sizes)
    print("done")


if __name__ == "__main__":
    main()
