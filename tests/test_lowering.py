"""Training step and inference can be lowered and exported for TPU, CUDA and CPU on any machine.

Nothing is compiled: the tests show that every operator has a lowering for each platform and that each platform gets its
own formulations, not that XLA can compile them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from mrcnn_jax.config import Config, FPNConfig, ModelConfig, presets
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.ops.roi.window_products import COLUMNS, ROWS, TILE
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training import parallel
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import create_state, make_train_step

pytestmark = pytest.mark.medium

PLATFORMS = ("tpu", "cuda", "cpu")
R50 = dataclasses.replace(presets.detectron2(), num_classes=80)
KEY = jax.ShapeDtypeStruct((2,), np.uint32)
SHAPE = (800, 1088)  # the first default bucket


def batch_shapes(*leading: int, shape: tuple[int, int]) -> Batch:
    """Return the shapes of a batch with 100 ground-truth slots."""

    def leaf(dtype: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, *rest), dtype)

    truth = GroundTruth(
        boxes=leaf(np.float32, 100, 4),
        classes=leaf(np.int32, 100),
        masks=leaf(np.uint8, 100, 112, 112),
        mask_windows=leaf(np.float32, 100, 4),
        keypoints=leaf(np.float32, 100, 0, 3),
        valid=leaf(np.bool_, 100),
    )
    return Batch(leaf(np.uint8, *shape, 3), leaf(np.int32, 2), leaf(np.int32), leaf(np.bool_), truth)


def make_step(model_config: ModelConfig, axis_name: str | None = None) -> tuple[Any, Any]:
    """Return the training step and the shapes of its state."""
    config = Config(model=model_config)
    model = build_model(model_config)
    shapes = variable_shapes(model)
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes["params"], frozen_paths(model_config))
    step = make_train_step(model, config, optimizer, schedule, axis_name=axis_name)
    return step, jax.eval_shape(functools.partial(create_state, optimizer), shapes)


@pytest.fixture(scope="module")
def tiny(tiny_model_config):
    """The tiny model with 256 FPN channels, which select the formulations of the full-size model."""
    return dataclasses.replace(tiny_model_config, num_classes=3, fpn=FPNConfig(channels=256))


def cells(shape: tuple[int, int], images: int) -> int:
    """Return the number of cells of P2..P5."""
    return images * sum(shape[0] // stride * shape[1] // stride for stride in (4, 8, 16, 32))


def check_formulations(text: str, platform: str, shape: tuple[int, int], images: int) -> None:
    """GPUs get the ROIAlign gradient on cells of all levels, TPUs on windows; CPUs kernel gradients as products."""
    assert (f"tensor<{cells(shape, images)}x256xf32>" in text) == (platform == "cuda")
    assert (f"{ROWS}x{COLUMNS // TILE}x{TILE}x256xf32>" in text) == (platform == "tpu")
    assert ("tensor<9x256x256x" in text) == (platform == "cpu")


@pytest.fixture(scope="module")
def step_over_devices(tiny):
    """The step under pmap, as in training, and the shapes of its state."""
    step, state = make_step(tiny, parallel.AXIS_NAME)
    return parallel.CompiledTrainStep(step, jax.local_devices()[:2]), state


@pytest.mark.parametrize("platform", PLATFORMS)
def test_step_over_devices(step_over_devices, platform):
    """The program has its reductions on every platform, and is traced once."""
    compiled, state = step_over_devices
    lowered = compiled.lower(state, batch_shapes(2, 1, shape=SHAPE), jax.random.key(0), platform)
    text = lowered.as_text()
    check_formulations(text, platform, SHAPE, 1)
    assert text.count("stablehlo.all_reduce") > 10
    assert compiled.traces == 1


def test_export_of_inference_for_all_platforms(tiny):
    check_inference(tiny)


def check_inference(config: ModelConfig) -> None:
    model = build_model(config)
    images, sizes = jax.ShapeDtypeStruct((2, *SHAPE, 3), np.uint8), jax.ShapeDtypeStruct((2, 2), np.int32)
    exported = jax.export.export(jax.jit(functools.partial(detect, model)), platforms=PLATFORMS)(
        variable_shapes(model), images, sizes
    )
    assert exported.platforms == PLATFORMS
    count, side = model.config.box.max_detections, 2 * model.config.mask.pool_size
    assert (2, count, side, side) in [aval.shape for aval in exported.out_avals]


@functools.cache
def traced_step(dtype: Any) -> Any:
    """R50-FPN at the first default bucket, two images."""
    step, state = make_step(dataclasses.replace(R50, compute_dtype=dtype))
    function = jax.jit(lambda state, batch, key: step(state, batch, jax.random.wrap_key_data(key)))
    return function, (state, batch_shapes(2, shape=SHAPE), KEY)


@pytest.mark.slow  # tracing full-size networks takes long, and they have few operators that the tiny one lacks
@pytest.mark.parametrize(("dtype", "platform"), [("float32", p) for p in PLATFORMS] + [("bfloat16", "tpu")])
def test_full_size_step(dtype, platform):
    function, arguments = traced_step(dtype)
    text = function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    check_formulations(text, platform, SHAPE, 2)
    assert ("bf16" in text) == (dtype == "bfloat16")


@pytest.mark.slow
def test_export_of_full_size_step_for_all_platforms():
    function, arguments = traced_step("float32")
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    # The state has the same shapes and types in inputs and outputs, where it precedes the metrics.
    count = len(jax.tree.leaves(arguments[0]))
    assert exported.out_avals[:count] == exported.in_avals[:count]


@pytest.mark.slow
def test_export_of_full_size_inference_for_all_platforms():
    check_inference(R50)
