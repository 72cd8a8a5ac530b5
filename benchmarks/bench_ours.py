"""Tasks of `benchmarks.compare` in mrcnn_jax; each function prepares the task of its name."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.interleave import Task, serve
from mrcnn_jax.config import Config, ModelConfig, presets
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.inference.paste import paste_mask
from mrcnn_jax.models import mask_rcnn
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import masks as mask_ops
from mrcnn_jax.ops.matching import match
from mrcnn_jax.ops.nms import batched_nms
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.structures import Batch, Detections, GroundTruth, Proposals
from mrcnn_jax.training import forward
from mrcnn_jax.training.step import create_state, make_train_step
from mrcnn_jax.weights import torchvision_names as names
from mrcnn_jax.weights.naming import import_state

SLOTS = 100  # for objects, mostly empty, as in the recipes


def model_config(low_precision: bool = False) -> ModelConfig:
    """Return the configuration of torchvision's Mask R-CNN."""
    config = presets.torchvision_model("maskrcnn_resnet50_fpn")
    return dataclasses.replace(config, compute_dtype="bfloat16" if low_precision else "float32")


def compile_program(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Callable[..., Any], dict]:
    """Return the compiled program, and its facts: seconds of compilation, FLOP and bytes as counted by XLA."""
    start = time.perf_counter()
    lowered = jax.jit(function, **options).lower(*arguments)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    # FLOP before optimization, which replaces convolutions by library calls; bytes after it.
    flop = (lowered.cost_analysis() or {}).get("flops", 0.0)
    num_bytes = (program.cost_analysis() or {}).get("bytes accessed", 0.0)
    return program, {"compile": seconds, "flop": flop, "bytes": num_bytes}


def program_task(function: Callable[..., Any], *arguments: Any) -> Task:
    """Return the task of a compiled function with arguments on the device."""
    placed = jax.device_put(arguments)
    program, facts = compile_program(function, *placed)
    return Task(lambda: jax.block_until_ready(program(*placed)), facts, device_peak())


def device_peak() -> Callable[[], float] | None:
    """Return the device's peak memory counter, which counts from the start of the process; None on CPU."""
    if jax.default_backend() == "cpu":
        return None
    return lambda: jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def matrix_product(case: Case) -> Task:
    dtype = jnp.bfloat16 if case.low_precision else jnp.float32
    matrix = np.asarray(np.random.default_rng(0).standard_normal((case.size, case.size)), dtype)
    return program_task(lambda a, b: a @ b, matrix, matrix)


def copying(case: Case) -> Task:
    values = np.zeros(case.size, np.float32)
    return program_task(lambda x: x + 1, values)


def roi_align(case: Case) -> Task:
    levels, config = cases.feature_maps(case)[:-1], model_config().roi

    def pool(levels: Any, boxes: Any) -> jax.Array:
        return multilevel_roi_pooling(levels, boxes, config, strides=cases.STRIDES[:-1], output_size=case.size)

    def gradient(levels: Any, boxes: Any, cotangent: Any) -> Any:
        return jax.vjp(lambda maps: pool(maps, boxes), levels)[1](cotangent)

    boxes = cases.rois(case, 512)
    if not case.gradient:
        return program_task(pool, levels, boxes)
    shape = (case.images, 512, case.size, case.size, cases.CHANNELS)
    return program_task(gradient, levels, boxes, np.ones(shape, np.float32))


def nms(case: Case) -> Task:
    boxes, scores, groups = cases.nms_inputs(case, cases.NUM_CLASSES)
    valid = np.ones(case.size, bool)
    return program_task(
        functools.partial(batched_nms, iou_threshold=0.5), boxes, scores, groups.astype(np.int32), valid
    )


def matching(case: Case) -> Task:
    truth = cases.object_boxes(case)[0]

    def run(truth: Any, anchors: Any) -> Any:
        iou = box_ops.iou(truth, anchors)
        return match(iou, jnp.ones(len(truth), bool), positive=0.7, negative=0.3, allow_low_quality=True)

    return program_task(run, truth, cases.anchors(case))


def top_k(case: Case) -> Task:
    return program_task(
        lambda levels: [jax.lax.top_k(level, min(1000, len(level))) for level in levels], cases.objectness_logits(case)
    )


def pasting(case: Case) -> Task:
    masks, boxes = cases.mask_probabilities(case)
    if jax.default_backend() == "cpu":
        return Task(lambda: full_frames(masks, boxes, case.shape))
    return program_task(lambda m, b: mask_ops.paste(m, b, case.shape, rule="torchvision") >= 0.5, masks, boxes)


def full_frames(masks: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Paste masks on the host as the commands do, but as full images (D, H, W) bool like torchvision."""
    frames = np.zeros((len(masks), *shape), bool)
    for frame, mask, box in zip(frames, masks, boxes, strict=True):
        region = paste_mask(mask, box, shape, "torchvision")
        height, width = region.pixels.shape
        frame[region.top : region.top + height, region.left : region.left + width] = region.pixels
    return frames


def network(case: Case) -> tuple[mask_rcnn.MaskRCNN, Any]:
    model = mask_rcnn.build_model(model_config(case.low_precision))
    return model, import_state(names.DETECTION, model, cases.weights())


def backbone(case: Case) -> Task:
    model, variables = network(case)
    normalized = np.random.default_rng(0).standard_normal((case.images, *case.shape, 3), dtype=np.float32)
    return program_task(lambda v, *x: model.apply(v, *x, method=model.features), variables, normalized, sizes_of(case))


def rpn(case: Case) -> Task:
    model, variables = network(case)
    features = tuple(np.asarray(level, model.config.compute_dtype) for level in cases.feature_maps(case))

    def run(variables: Any, features: Any, sizes: Any) -> Proposals:
        outputs = model.apply(variables, features, case.shape, method=model.rpn)
        return mask_rcnn.propose(model.config, outputs, sizes, train=False)

    return program_task(run, variables, features, sizes_of(case))


def heads(case: Case) -> Task:
    model, variables = network(case)
    config = model.config
    features = tuple(np.asarray(level, config.compute_dtype) for level in cases.feature_maps(case))
    assert config.mask is not None
    mask_size = config.mask.pool_size

    def run(variables: Any, features: Any, proposals: Any, detections: Any) -> Any:
        box_features = mask_rcnn.pool_rois(config, features, proposals, config.box.pool_size)
        mask_features = mask_rcnn.pool_rois(config, features, detections, mask_size)
        classes = jnp.ones(len(mask_features), jnp.int32)
        boxes = model.apply(variables, box_features, method=model.box)
        return boxes, model.apply(variables, mask_features, classes, method=model.mask)

    return program_task(
        run, variables, features, cases.rois(case, cases.NUM_PROPOSALS), cases.rois(case, cases.NUM_DETECTIONS)
    )


def inference(case: Case) -> Task:
    """Detection and pasted masks for images in memory; pastes on the host if the device is a CPU."""
    model, variables = network(case)
    placed = jax.device_put((variables, cases.random_images(case), sizes_of(case)))
    if jax.default_backend() != "cpu":
        return program_task(functools.partial(detect_and_paste, model, case.shape), *placed)
    program, facts = compile_program(functools.partial(detect, model), *placed)

    def run() -> list[np.ndarray]:
        detections = jax.tree.map(np.asarray, program(*placed))
        return [full_frames(*pair, case.shape) for pair in zip(detections.masks, detections.boxes, strict=True)]

    return Task(run, facts)


def detect_and_paste(
    model: mask_rcnn.MaskRCNN, shape: tuple[int, int], variables: Any, images: Any, sizes: Any
) -> tuple[Detections, jax.Array]:
    """Return detections and their pasted masks (B, D, H, W) bool."""
    detections = detect(model, variables, images, sizes)
    pairs = (detections.masks, detections.boxes)
    masks = jax.lax.map(lambda pair: mask_ops.paste(*pair, shape, rule="torchvision") >= 0.5, pairs)
    return detections, masks


def training(case: Case) -> Task:
    config = Config(model=model_config(case.low_precision))
    model = mask_rcnn.build_model(config.model)
    optimizer = optax.sgd(1e-4, momentum=0.9)
    step = make_train_step(model, config, optimizer, optax.constant_schedule(1e-4))
    batch, key = jax.device_put((training_batch(case), jax.random.key(0)))
    # Copied, because the step donates its buffers.
    state = jax.tree.map(jnp.copy, create_state(optimizer, import_state(names.DETECTION, model, cases.weights())))
    with mock.patch.object(forward, "propose", add_proposals(forward.propose, cases.jittered_copies(case))):
        program, facts = compile_program(step, state, batch, key, donate_argnums=0)

    def run() -> Any:
        nonlocal state
        state, metrics = program(state, batch, key)
        positive = int(metrics["num_positive_rois"])
        assert positive == 128 * case.images, f"{positive} positive RoIs: torchvision has 128 per image"
        return metrics

    return Task(run, facts, device_peak())


def add_proposals(propose: Callable[..., Proposals], copies: np.ndarray) -> Callable[..., Proposals]:
    """Return `propose` with `copies` (B, 200, 4) of the objects appended to the proposals."""

    def extended(*args: Any, **kwargs: Any) -> Proposals:
        proposals = propose(*args, **kwargs)
        shape = copies.shape[:2]
        added = Proposals(jnp.asarray(copies), jnp.ones(shape, jnp.float32), jnp.ones(shape, bool))
        return Proposals(*(jnp.concatenate(fields, axis=1) for fields in zip(proposals, added, strict=True)))

    return extended


def training_batch(case: Case) -> Batch:
    boxes = np.zeros((case.images, SLOTS, 4), np.float32)
    boxes[:, : cases.NUM_OBJECTS] = cases.object_boxes(case)
    slots = boxes.shape[:2]
    valid = np.zeros(slots, bool)
    valid[:, : cases.NUM_OBJECTS] = True
    truth = GroundTruth(
        boxes=boxes,
        classes=valid.astype(np.int32),
        masks=np.ones((*slots, 112, 112), np.uint8),
        mask_windows=boxes,
        keypoints=np.zeros((*slots, 0, 3), np.float32),
        valid=valid,
    )
    indices = np.arange(case.images, dtype=np.int32)
    return Batch(cases.random_images(case), sizes_of(case), indices, np.ones(case.images, bool), truth)


def sizes_of(case: Case) -> np.ndarray:
    """Return image sizes (B, 2) without padding."""
    return np.tile(np.int32(case.shape), (case.images, 1))


def prepare(**fields: Any) -> Task:
    case = Case(**fields)
    return globals()[case.task](case)


if __name__ == "__main__":
    compilation_cache.trim_heap()  # as the commands do
    serve(prepare)
