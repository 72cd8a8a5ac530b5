"""Train steps of the tiny network that tests share: traced and compiled once per process.

Parallel test processes share them through the compilation cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mrcnn_jax.config import Config, DataConfig, EvalConfig, KeypointHeadConfig, ModelConfig, TrainConfig
from mrcnn_jax.models.mask_rcnn import build_model, init_variables
from mrcnn_jax.runtime import files
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training import init as init_module
from mrcnn_jax.training import parallel
from mrcnn_jax.training import step as train_step
from mrcnn_jax.training import train as train_module
from mrcnn_jax.training.step import TrainState, TrainStep, create_state, make_train_step
from support import tiny

IMAGES, SLOTS, SIZE = 4, 5, 64
CLASSES, KEYPOINTS = 5, 2
LEARNING_RATE = 0.02
OPTIMIZER = optax.sgd(LEARNING_RATE, momentum=0.9)  # after one step the momentum is the gradient


def first_use() -> contextlib.AbstractContextManager[None]:
    """Lock the first call of a shared program, so that other processes then find it in the compilation cache."""
    cache = Path(jax.config.jax_compilation_cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    return files.folder_lock(cache)


def share_train_steps(change: Callable[[Any, str, Any], None]) -> None:
    """Make `train` reuse train steps and initial variables of earlier runs in this process.

    `change` is the `setattr` of a MonkeyPatch.
    """
    make, compile_step, init = train_module.make_train_step, parallel.CompiledTrainStep, init_module.init_variables
    steps: dict[Any, Any] = {}
    compiled: dict[Any, Any] = {}
    initialized: dict[Any, Any] = {}

    def make_once(model: Any, config: Config, *others: Any, axis_name: str) -> Any:
        key = _step_config(config), axis_name, train_step.make_gradient_function
        return steps.setdefault(key, make(model, config, *others, axis_name=axis_name))

    def compile_once(step: Any, devices: Sequence[jax.Device] | None = None) -> Any:
        if step not in steps.values():
            return compile_step(step, devices)
        return compiled.setdefault((step, tuple(devices)), compile_step(step, devices))

    def init_once(model: Any, key: jax.Array) -> Any:
        inputs = model, tuple(jax.random.key_data(key).tolist())
        if inputs not in initialized:
            initialized[inputs] = jax.device_get(init(model, key))
        return jax.tree.map(np.copy, initialized[inputs])

    change(init_module, "init_variables", init_once)
    change(train_module, "make_train_step", make_once)
    change(parallel, "CompiledTrainStep", compile_once)


def _step_config(config: Config) -> Config:
    """Reset the fields that do not affect the train step."""
    default = TrainConfig()
    names = ("log_every", "checkpoint_every", "keep_checkpoints", "validate_every", "evaluate_every", "best_metric")
    train = dataclasses.replace(config.train, **{name: getattr(default, name) for name in (*names, "patience")})
    return dataclasses.replace(config, name="", init="", data=DataConfig(), eval=EvalConfig(), train=train)


def make_config(norm: Any = "gn", *, fixed: bool = False, **changes: Any) -> Config:
    """A model with all heads, whose backbone is frozen except for res5, to compile less.

    fixed: use fixed normalizers of losses. changes: fields of the model configuration.
    """
    small = tiny.model()
    keypoint = KeypointHeadConfig(
        num_keypoints=KEYPOINTS,
        flip_map=(1, 0),
        pool_size=4,
        channels=8,
        conv_layers=1,
        normalizer="fixed" if fixed else "visible",
    )
    model: ModelConfig = dataclasses.replace(
        small,
        num_classes=CLASSES,
        backbone=dataclasses.replace(small.backbone, frozen_stages=4, norm=norm),
        rpn=dataclasses.replace(small.rpn, normalizer="batch_size" if fixed else "sampled"),
        keypoint=keypoint,
        **changes,
    )
    return Config(model=model)


def make_state(config: Config) -> TrainState:
    """The state before the first step."""
    variables = init_variables(build_model(config.model), jax.random.key(0))
    state: TrainState = jax.device_get(create_state(OPTIMIZER, variables))
    return state


def make_step(config: Config, accumulate: int = 1, axis_name: str | None = None) -> TrainStep:
    config = dataclasses.replace(config, train=TrainConfig(batch_size=IMAGES, accumulate=accumulate))
    model = build_model(config.model)
    return make_train_step(model, config, OPTIMIZER, lambda step: LEARNING_RATE / (1 + step), axis_name=axis_name)


class Program(NamedTuple):
    """A step on one device, with its initial state."""

    step: Any  # compiled
    state: TrainState
    traces: list[int]  # one entry per trace


@functools.cache
def one_device() -> Program:
    """The reference step: group norm, float32, no accumulation."""
    config, traces = make_config(), []
    step = make_step(config)

    def traced_step(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        traces.append(len(traces))
        return step(state, batch, key)

    program = Program(jax.jit(traced_step), make_state(config), traces)
    with first_use():
        program.step(program.state, make_batch([1]), jax.random.key(0))
    return program


def make_batch(objects: Sequence[int], seed: int = 0) -> Batch:
    """Images of gray noise with the given numbers of brighter rectangles; missing images are empty slots."""
    rng = np.random.default_rng(seed)
    count = len(objects)
    images = rng.integers(0, 100, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    corners = rng.integers(0, 30, (IMAGES, SLOTS, 2))
    boxes = np.concatenate([corners, corners + rng.integers(16, 32, (IMAGES, SLOTS, 2))], axis=-1).astype(np.float32)
    exists = np.arange(IMAGES) < count
    valid = np.arange(SLOTS) < np.pad(objects, (0, IMAGES - count))[:, None]
    for image, its_boxes, its_valid in zip(images, boxes.astype(int), valid, strict=True):
        for x0, y0, x1, y1 in its_boxes[its_valid]:
            image[y0:y1, x0:x1] |= 128
    images[~exists] = 0
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    keypoints = np.full((IMAGES, SLOTS, KEYPOINTS, 3), 2, np.float32)
    keypoints[..., :2] = centers[:, :, None] + rng.uniform(-6, 6, (IMAGES, SLOTS, KEYPOINTS, 2))
    keypoints = np.where(valid[..., None, None], keypoints, 0)
    boxes = np.where(valid[..., None], boxes, 0)
    classes = np.where(valid, rng.integers(1, CLASSES + 1, valid.shape), 0).astype(np.int32)
    masks = rng.integers(0, 2, (IMAGES, SLOTS, 8, 8), dtype=np.uint8)
    truth = GroundTruth(boxes, classes, masks, boxes, keypoints, valid)
    sizes = np.full((IMAGES, 2), SIZE, np.int32)
    return Batch(images, sizes, np.arange(20, 20 + IMAGES, dtype=np.int32), exists, truth)
