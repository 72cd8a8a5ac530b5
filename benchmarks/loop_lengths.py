"""Iterations of loops whose trip count depends on the boxes: `python -m benchmarks.loop_lengths ANNOTATIONS`.

ANNOTATIONS is a COCO file. The loops of `ops` run on the CPU, in the formulation for `--platform`, with boxes like
those of a trained network: anchors near an object get a high score and deltas towards it, with noise. The objects are
those of the landscape images, resized to 800x1088. The table has the mean over groups of images, which share their
loops, and the largest number. `TURNS` are these means for 63 photographs of COCO, for `benchmarks.tpu_program`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hlo_program import AssumedTurns
from benchmarks.jit_cases import model_config
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mask_rcnn import feature_strides, pool_rois
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.ops import proposals as proposal_ops
from mrcnn_jax.ops.anchors import grid_anchors
from mrcnn_jax.structures import GroundTruth, Proposals
from mrcnn_jax.targets import sample_rois

SHAPE = (800, 1088)
SLOTS = 100  # for objects
GROUPS = (1, 2, 8)  # images in a program
CHANNELS = 8  # of the feature maps, which do not change the loops
TURNS = {  # of each loop with groups of 1, 2 and 8 images
    "inference, nms, proposals": (7.9, 8.5, 9.6),
    "inference, nms, detections 1": (2.1, 2.1, 2.6),
    "inference, nms, detections 2": (1.8, 2.0, 2.1),
    "inference, nms, detections 3": (1.0, 1.1, 1.3),
    "inference, nms, detections 4": (1.0, 1.0, 1.0),
    # Means over the runs of a loop in an image, which do not depend on the number of images. In training, 1 is the
    # forward pass, 2 the gradient of the finest level, 3 that of the others.
    "inference, roi_align 7x7": (1.4, 1.4, 1.4),
    "inference, roi_align 14x14": (1.5, 1.5, 1.5),
    "training, nms, proposals 1": (7.9, 8.5, 9.6),
    "training, nms, proposals 2": (4.4, 4.8, 5.6),
    "training, roi_align 7x7 1": (1.5, 1.5, 1.5),
    "training, roi_align 7x7 2": (25.5, 25.5, 25.5),
    "training, roi_align 7x7 3": (4.1, 4.1, 4.1),
    "training, roi_align 14x14 1": (1.7, 1.7, 1.7),
    "training, roi_align 14x14 2": (6.0, 6.0, 6.0),
    "training, roi_align 14x14 3": (2.2, 2.2, 2.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="COCO JSON")
    parser.add_argument("--platform", default="tpu", choices=["tpu", "cuda"])
    options = parser.parse_args()
    model = model_config("float32")
    turns: dict[str, list[float]] = {}
    runs = [inference(model, options.platform), training(model, options.platform)]
    images = object_boxes(json.loads(options.annotations.read_text()))
    for index, (boxes, classes) in enumerate(images):
        for run in runs:
            for name, count in run(boxes, classes, jax.random.key(index)).items():
                turns.setdefault(name, []).append(count)
    print(f"{len(images)} images\n\n| loop | {' | '.join(f'images: {size}' for size in GROUPS)} | largest |")
    print("|---" * (len(GROUPS) + 2) + "|")
    for name, counts in turns.items():
        means = (np.mean([max(counts[i : i + n]) for i in range(0, len(counts) - n + 1, n)]) for n in GROUPS)
        print(f"| {name} | {' | '.join(f'{mean:.1f}' for mean in means)} | {max(counts):.1f} |")


def measured_turns(program: str, images: int, default: float) -> AssumedTurns:
    """Return a function from the source, scope and shape of a loop to its length in `TURNS`, or `default`."""
    seen: dict[str, int] = {}
    group = min(range(len(GROUPS)), key=lambda index: abs(GROUPS[index] - images))

    def turns(source: str, scope: str, shape: str) -> float:
        name = f"{program}, {_loop_name(source, scope, shape)}"
        seen[name] = seen.get(name, 0) + 1
        measured = TURNS.get(name) or TURNS.get(f"{name} {seen[name]}")
        return measured[group] if measured else default

    return turns


def _loop_name(source: str, scope: str, shape: str) -> str:
    if "ops/nms.py" in source:
        return "nms, detections" if "detections" in scope else "nms, proposals"
    if "ops/roi/" not in source:
        return source
    if bins := re.search(r"\[\d+,(56|224),", shape):  # of RoIs: 7 x 8 and 14 x 16, since rows are padded
        return f"roi_align {'7x7' if bins[1] == '56' else '14x14'}"
    size = "7x7" if re.search(r"f32\[\d+,49\]", shape) else "14x14"
    rows = re.search(r"f32\[(\d+),\d+,8,\d+\]", shape)  # of a level
    return f"roi_align {size} {2 if rows and int(rows[1]) >= SHAPE[0] // 4 else 3}"


def object_boxes(coco: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return boxes (100, 4), zero after the last object, and classes (100,) of each landscape image."""
    result = []
    for image in coco["images"]:
        if image["width"] < image["height"]:
            continue
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")][:SLOTS]
        scale = min(SHAPE[0] / image["height"], SHAPE[1] / image["width"])
        boxes, classes = np.zeros((SLOTS, 4), np.float32), np.zeros(SLOTS, np.int32)
        for slot, annotation in enumerate(found):
            x, y, width, height = annotation["bbox"]
            boxes[slot] = np.multiply(scale, [x, y, x + width, y + height])
            classes[slot] = annotation["category_id"]
        result.append((boxes, classes))
    return result


def inference(config: ModelConfig, platform: str) -> Callable[..., dict[str, float]]:
    """Return a function that runs the loops of inference in one image and returns their iterations by name."""
    propose = counted(platform, predicted_proposals(config, train=False))
    detect = counted(platform, predicted_detections(config))
    pool = {size: counted(platform, pooling(config, size), np.mean) for size in (7, 14)}

    def run(boxes: np.ndarray, classes: np.ndarray, key: jax.Array) -> dict[str, float]:
        proposals, rounds = propose(boxes, key)
        detections, class_rounds = detect(boxes, classes, proposals, key)
        return (
            named("inference", "nms, proposals", rounds)
            | named("inference", "nms, detections", class_rounds)
            | named("inference", "roi_align 7x7", pool[7](proposals.boxes)[1])
            | named("inference", "roi_align 14x14", pool[14](detections)[1])
        )

    return run


def training(config: ModelConfig, platform: str) -> Callable[..., dict[str, float]]:
    """Return the same for a training step."""
    propose = counted(platform, predicted_proposals(config, train=True))
    pool = {size: counted(platform, pooling_gradient(config, size), np.mean) for size in (7, 14)}
    positives = int(config.roi.batch_size * config.roi.positive_fraction)

    @jax.jit
    def sample(boxes: jax.Array, classes: jax.Array, proposals: Proposals, key: jax.Array) -> jax.Array:
        none = jnp.zeros((SLOTS, 0, 0), jnp.uint8), boxes, jnp.zeros((SLOTS, 0, 3))
        return sample_rois(key, proposals, GroundTruth(boxes, classes, *none, classes > 0), config.roi).boxes

    def run(boxes: np.ndarray, classes: np.ndarray, key: jax.Array) -> dict[str, float]:
        proposals, rounds = propose(boxes, key)
        rois = sample(boxes, classes, proposals, key)
        return (
            named("training", "nms, proposals", rounds)
            | named("training", "roi_align 7x7", pool[7](rois)[1])
            | named("training", "roi_align 14x14", pool[14](rois[:positives])[1])
        )

    return run


def named(program: str, loop: str, counts: list[float]) -> dict[str, float]:
    """Return the counts by name, numbered if there are several."""
    numbers = [f" {i + 1}" for i in range(len(counts))] if len(counts) > 1 else [""]
    return {f"{program}, {loop}{number}": count for number, count in zip(numbers, counts, strict=True)}


def predicted_proposals(config: ModelConfig, *, train: bool) -> Callable[..., Proposals]:
    """Return a function from the objects (N, 4) of an image and a key to proposals."""
    strides = feature_strides(config)
    grids = [(-(-SHAPE[0] // stride), -(-SHAPE[1] // stride)) for stride in strides]
    levels = grid_anchors(config.anchors, SHAPE, grids, strides)
    anchors, ends = jnp.concatenate(levels), np.cumsum([len(level) for level in levels])[:-1]

    def run(boxes: jax.Array, key: jax.Array) -> Proposals:
        keys = jax.random.split(key, 3)
        overlap = box_ops.iou(boxes, anchors)
        nearest, best = boxes[jnp.argmax(overlap, axis=0)], jnp.max(overlap, axis=0)
        logits = 10 * (best - 0.5) + jax.random.normal(keys[0], best.shape)
        exact = box_ops.encode(nearest, anchors, weights=proposal_ops.DELTA_WEIGHTS)
        noise = 0.1 * jax.random.normal(keys[1], exact.shape)
        deltas = jnp.where(best[:, None] > 0.3, exact, 0.0) + noise
        split = (jnp.split(array, ends) for array in (logits, deltas))
        return proposal_ops.propose(*split, levels, jnp.asarray(SHAPE), config.rpn, train=train)

    return run


def predicted_detections(config: ModelConfig) -> Callable[..., jax.Array]:
    """Return a function from the objects of an image, proposals and a key to the boxes of detections."""

    def run(boxes: jax.Array, classes: jax.Array, proposals: Proposals, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        overlap = box_ops.iou(boxes, proposals.boxes)
        nearest, best = jnp.argmax(overlap, axis=0), jnp.max(overlap, axis=0)
        shape = (len(best), config.num_classes + 1)
        found = jax.nn.one_hot(jnp.where(best > 0.4, classes[nearest], 0), shape[1])
        logits = (4 + 8 * best[:, None]) * found + 1.5 * jax.random.normal(keys[0], shape)
        exact = box_ops.encode(boxes[nearest], proposals.boxes, weights=config.box.delta_weights)
        deltas = 0.8 * jnp.where(best[:, None] > 0.4, exact, 0.0)[:, None]
        deltas = deltas + 0.3 * jax.random.normal(keys[1], (*shape[:1], config.num_classes, 4))
        return detection_ops.detect(logits, deltas, proposals, jnp.asarray(SHAPE), config.box)[0]

    return run


def empty_maps(config: ModelConfig) -> list[jax.Array]:
    """Return feature maps of one image."""
    return [jnp.zeros((1, -(-SHAPE[0] // s), -(-SHAPE[1] // s), CHANNELS)) for s in feature_strides(config)]


def pooling(config: ModelConfig, size: int) -> Callable[[jax.Array], jax.Array]:
    """Return a function that pools boxes (R, 4) from empty maps."""
    return lambda boxes: pool_rois(config, empty_maps(config), boxes[None], size)


def pooling_gradient(config: ModelConfig, size: int) -> Callable[[jax.Array], Any]:
    """Return the same with the gradient of the maps."""

    def run(boxes: jax.Array) -> Any:
        pooled, gradient = jax.vjp(lambda maps: pool_rois(config, maps, boxes[None], size), empty_maps(config))
        return pooled, gradient(pooled)

    return run


def counted(
    platform: str, function: Callable[..., Any], of_runs: Callable[[list[int]], Any] = max
) -> Callable[..., tuple[Any, list[float]]]:
    """Return a function that returns also the iterations of each loop of unknown length, in the order of the trace.

    `of_runs` is applied to those of all runs of a loop, inside another or for several mapped arguments.
    """
    counts: list[list[int]] = []
    jitted = jax.jit(function)

    def run(*arguments: Any) -> tuple[Any, list[float]]:
        for count in counts:
            count.clear()
        with counting(platform, counts):
            result = jax.block_until_ready(jitted(*arguments))
        jax.effects_barrier()
        return result, [of_runs(count) for count in counts if count]  # some are traced twice

    return run


@contextlib.contextmanager
def counting(platform: str, counts: list[list[int]]) -> Iterator[None]:
    """Make loops that are traced in this context count their iterations, and operators choose those of `platform`."""
    while_loop, fori_loop = jax.lax.while_loop, jax.lax.fori_loop

    def counted_while(condition: Callable[..., Any], body: Callable[..., Any], initial: Any) -> Any:
        count: list[int] = []
        counts.append(count)
        number, result = while_loop(
            lambda state: condition(state[1]), lambda state: (state[0] + 1, body(state[1])), (jnp.int32(0), initial)
        )
        jax.debug.callback(lambda n: count.append(int(n)), number)
        return result

    def counted_for(lower: Any, upper: Any, body: Callable[..., Any], initial: Any) -> Any:
        if not isinstance(lower, jax.Array) and not isinstance(upper, jax.Array):
            return fori_loop(lower, upper, body, initial)
        first = jnp.asarray(lower, jnp.int32)
        return counted_while(lambda s: s[0] < upper, lambda s: (s[0] + 1, body(*s)), (first, initial))[1]

    def choose(*arguments: Any, default: Callable[..., Any] | None = None, **branches: Callable[..., Any]) -> Any:
        branch = branches.get(platform, default)
        assert branch is not None
        return branch(*arguments)

    with mock.patch.multiple(jax.lax, while_loop=counted_while, fori_loop=counted_for, platform_dependent=choose):
        yield


if __name__ == "__main__":
    main()
