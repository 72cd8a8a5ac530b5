"""The train steps of the tiny network that tests share: a process traces and compiles each of them once.

Processes that share the tests take them from the compilation cache when another one has compiled them.
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
    """A lock for the first call of a shared program: whoever waits for it finds the program in the cache."""
    cache = Path(jax.config.jax_compilation_cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    return files.folder_lock(cache)


def share_train_steps(change: Callable[[Any, str, Any], None]) -> None:
    """Let `train` trace and compile a step, and the initialization of parameters, once for all runs of a process that
    need the same program. `change` is a MonkeyPatch's `setattr`.
    """
    make, spread, init = train_module.make_train_step, parallel.compile_train_step, init_module.init_variables
    steps: dict[Any, Any] = {}
    compiled: dict[Any, Any] = {}
    begun: dict[Any, Any] = {}

    def make_once(model: Any, config: Config, *others: Any, axis_name: str) -> Any:
        key = _without_the_surroundings(config), axis_name, train_step.make_gradient_function
        return steps.setdefault(key, make(model, config, *others, axis_name=axis_name))

    def compile_once(step: Any, devices: Sequence[jax.Device] | None = None) -> Any:
        if step not in steps.values():
            return spread(step, devices)
        return compiled.setdefault((step, tuple(devices)), spread(step, devices))

    def init_once(model: Any, key: jax.Array) -> Any:
        known = model, tuple(jax.random.key_data(key).tolist())
        if known not in begun:
            begun[known] = jax.device_get(init(model, key))
        return jax.tree.map(np.copy, begun[known])

    change(init_module, "init_variables", init_once)
    change(train_module, "make_train_step", make_once)
    change(parallel, "compile_train_step", compile_once)


def _without_the_surroundings(config: Config) -> Config:
    """What a step is made of: not the data, nor what the loop does between steps."""
    same = TrainConfig()
    names = ("log_every", "checkpoint_every", "keep_checkpoints", "validate_every", "evaluate_every", "best_metric")
    train = dataclasses.replace(config.train, **{name: getattr(same, name) for name in (*names, "patience")})
    return dataclasses.replace(config, name="", init="", data=DataConfig(), eval=EvalConfig(), train=train)


def make_config(norm: Any = "gn", *, fixed: bool = False, **changes: Any) -> Config:
    """A model with all heads, of whose backbone nothing learns but res5: less to compile.

    With `fixed`, the counts that losses are divided by are known beforehand; `changes` are those of the model.
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


def make_step(config: Config, parts: int = 1, axis_name: str | None = None) -> TrainStep:
    config = dataclasses.replace(config, train=TrainConfig(batch_size=IMAGES, accumulate=parts))
    model = build_model(config.model)
    return make_train_step(model, config, OPTIMIZER, lambda step: LEARNING_RATE / (1 + step), axis_name=axis_name)


class Program(NamedTuple):
    """A step on one device, and how it begins."""

    step: Any  # compiled
    state: TrainState
    traces: list[int]  # one entry for each time that the step was traced


@functools.cache
def one_device() -> Program:
    """The step that others are compared with: group norm, float32, the batch in one piece."""
    config, traces = make_config(), []
    step = make_step(config)

    def counted(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        traces.append(len(traces))
        return step(state, batch, key)

    program = Program(jax.jit(counted), make_state(config), traces)
    with first_use():
        program.step(program.state, make_batch([1]), jax.random.key(0))
    return program


def make_batch(objects: Sequence[int], seed: int = 0) -> Batch:
    """Images of gray noise with so many brighter rectangles each; a slot without an image for each that is missing."""
    rng = np.random.default_rng(seed)
    count = len(objects)
    images = rng.integers(0, 100, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    corners = rng.integers(0, 30, (IMAGES, SLOTS, 2))
    boxes = np.concatenate([corners, corners + rng.integers(16, 32, (IMAGES, SLOTS, 2))], axis=-1).astype(np.float32)
    there = np.arange(IMAGES) < count
    valid = np.arange(SLOTS) < np.pad(objects, (0, IMAGES - count))[:, None]
    for image, its_boxes, its_valid in zip(images, boxes.astype(int), valid, strict=True):
        for x0, y0, x1, y1 in its_boxes[its_valid]:
            image[y0:y1, x0:x1] |= 128
    images[~there] = 0
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    keypoints = np.full((IMAGES, SLOTS, KEYPOINTS, 3), 2, np.float32)
    keypoints[..., :2] = centers[:, :, None] + rng.uniform(-6, 6, (IMAGES, SLOTS, KEYPOINTS, 2))
    keypoints = np.where(valid[..., None, None], keypoints, 0)
    boxes = np.where(valid[..., None], boxes, 0)
    classes = np.where(valid, rng.integers(1, CLASSES + 1, valid.shape), 0).astype(np.int32)
    masks = rng.integers(0, 2, (IMAGES, SLOTS, 8, 8), dtype=np.uint8)
    truth = GroundTruth(boxes, classes, masks, boxes, keypoints, valid)
    sizes = np.full((IMAGES, 2), SIZE, np.int32)
    return Batch(images, sizes, np.arange(20, 20 + IMAGES, dtype=np.int32), there, truth)
