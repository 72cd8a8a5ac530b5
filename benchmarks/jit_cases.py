"""Programs of inference and training that are compiled for accelerators which the machine does not have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mrcnn_jax.config import Config, ModelConfig, TrainConfig, presets
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.ops.masks import paste
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.step import create_state, make_train_step

NUM_OBJECTS = 20  # per training image


class JitCase(NamedTuple):
    """A function, the shapes of its arguments, and the indices of donated ones."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


def model_config(dtype: str) -> ModelConfig:
    """Return R50-FPN with 90 classes."""
    config = presets.torchvision_model("maskrcnn_resnet50_fpn")
    return dataclasses.replace(config, num_classes=90, compute_dtype=dtype)


def inference(config: ModelConfig, images: int, shape: tuple[int, int]) -> JitCase:
    """Return the case of detection with pasted masks."""
    model = build_model(config)

    def run(variables: Any, pixels: Any, sizes: Any) -> Any:
        detections = detect(model, variables, pixels, sizes)
        return detections, jax.lax.map(paste_image, (detections.masks, detections.boxes))

    def paste_image(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return paste(pair[0], pair[1], shape, rule="torchvision") >= 0.5

    return JitCase(run, (variable_shapes(model), array(np.uint8, images, *shape, 3), array(np.int32, images, 2)))


def training(
    config: ModelConfig, images: int, shape: tuple[int, int], remat: bool = False, axis_name: str | None = None
) -> JitCase:
    """Return the case of a training step of SGD with momentum, of one device."""
    model, optimizer = build_model(config), optax.sgd(1e-4, momentum=0.9)
    full_config = Config(model=config, train=TrainConfig(remat=remat))
    step = make_train_step(model, full_config, optimizer, optax.constant_schedule(1e-4), axis_name=axis_name)
    state = jax.eval_shape(functools.partial(create_state, optimizer), variable_shapes(model))
    truth = GroundTruth(
        boxes=array(np.float32, images, NUM_OBJECTS, 4),
        classes=array(np.int32, images, NUM_OBJECTS),
        masks=array(np.uint8, images, NUM_OBJECTS, 112, 112),
        mask_windows=array(np.float32, images, NUM_OBJECTS, 4),
        keypoints=array(np.float32, images, NUM_OBJECTS, 0, 3),
        valid=array(np.bool_, images, NUM_OBJECTS),
    )
    pixels, sizes = array(np.uint8, images, *shape, 3), array(np.int32, images, 2)
    batch = Batch(pixels, sizes, array(np.int32, images), array(np.bool_, images), truth)

    def run(state: Any, batch: Any, key: Any) -> Any:
        return step(state, batch, jax.random.wrap_key_data(key))

    return JitCase(run, (state, batch, array(np.uint32, 2)), (0,))


def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
