"""Accuracy of mask targets resampled from crops, compared with polygons rasterized in the RoI.

    python benchmarks/mask_crops.py FOLDER [--annotations=annotations.json] [--crops=112] [--size=28]

Every RoI is the box of an instance with each corner moved by up to a tenth of its width and height. The reference is
the instance's polygons, scaled and rasterized by pycocotools in this RoI at the size of the mask head's output. It is
compared with `targets.mask_targets` of the training step, from the crops in a batch. "Rasterizer" compares it
with the same polygons on a grid 16 times finer, where cells count that are covered by half or more: the limit of any
method.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.data import annotations
from mrcnn_jax.data.mask_crops import Masks, crop_masks
from mrcnn_jax.data.sample import make_sample
from mrcnn_jax.structures import GroundTruth, SampledRoIs
from mrcnn_jax.targets import mask_targets

_OVERSAMPLING = 16


class Comparison(NamedTuple):
    """IoUs with the reference for n RoIs."""

    areas: np.ndarray  # (n,) float64, of the instances, square pixels
    crops: np.ndarray  # (n,) float64, IoU of targets from crops
    fine: np.ndarray  # (n,) float64, IoU of polygons on the finer grid


def compare(path: Path, *, crops: int = 112, size: int = 28, seed: int = 0) -> Comparison:
    """Compare one RoI of each instance with polygons, without crowds."""
    rng = np.random.default_rng(seed)
    parts = [_compare_image(masks, boxes, areas, rng, crops, size) for masks, boxes, areas in _instances(path)]
    return Comparison(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def table_lines(comparison: Comparison) -> Iterator[str]:
    """Yield a Markdown table of the IoUs, by the area of the instances."""
    yield "| area of the instance | RoIs | mean IoU | 5th percentile | minimum | rasterizer: mean | 5th percentile |"
    yield "|---|---|---|---|---|---|---|"
    edges = {"all": (0, np.inf), "below 16^2": (0, 16**2), "16^2 to 32^2": (16**2, 32**2)}
    edges |= {"32^2 to 96^2": (32**2, 96**2), "above 96^2": (96**2, np.inf)}
    for name, (low, high) in edges.items():
        selected = (comparison.areas >= low) & (comparison.areas < high)
        crops, fine = comparison.crops[selected], comparison.fine[selected]
        if not len(crops):
            continue
        cells = (crops.mean(), np.quantile(crops, 0.05), crops.min(), fine.mean(), np.quantile(fine, 0.05))
        yield f"| {name} | {len(crops)} | {' | '.join(f'{cell:.3f}' for cell in cells)} |"


def _instances(path: Path) -> Iterator[tuple[Masks, np.ndarray, np.ndarray]]:
    """Yield the polygons, boxes (n, 4) and areas (n,) of the instances of each image."""
    content = annotations.read(path)
    class_of = content.categories.class_of()
    for image in content.images:
        instances = [a for a in image.annotations if not a.get("iscrowd") and isinstance(a["segmentation"], list)]
        size = (image.height, image.width)
        sample = make_sample(np.zeros((*size, 3), np.uint8), instances, class_of, size)
        if instances and sample.masks is not None:
            yield sample.masks, sample.boxes, np.array([a["area"] for a in instances], np.float64)


def _compare_image(
    masks: Masks, boxes: np.ndarray, areas: np.ndarray, rng: np.random.Generator, crops: int, size: int
) -> Comparison:
    extents = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    rois = boxes + rng.uniform(-0.1, 0.1, boxes.shape) * extents
    exact = crop_masks(masks, rois, size) > 0
    targets = _targets(crop_masks(masks, boxes, crops), boxes, rois, size)
    finer = (
        crop_masks(masks, rois, size * _OVERSAMPLING)
        .reshape(-1, size, _OVERSAMPLING, size, _OVERSAMPLING)
        .mean(axis=(2, 4))
    )
    return Comparison(areas, _ious(targets > 0, exact), _ious(finer >= 0.5, exact))


def _targets(rasters: np.ndarray, boxes: np.ndarray, rois: np.ndarray, size: int) -> np.ndarray:
    """Return the mask targets (n, size, size) of the training step."""
    num_boxes = len(boxes)
    count = -(-num_boxes // 32) * 32  # limits the number of compilations
    rasters, boxes, rois = (np.resize(array, (count, *array.shape[1:])) for array in (rasters, boxes, rois))
    ones, valid = np.ones(count, np.int32), np.ones(count, bool)
    boxes, rois = boxes.astype(np.float32), rois.astype(np.float32)
    truth = GroundTruth(boxes, ones, rasters, boxes, np.zeros((count, 0, 3), np.float32), valid)
    sampled = SampledRoIs(rois, ones, np.arange(count, dtype=np.int32), valid)
    return np.asarray(_mask_targets(sampled, truth, MaskHeadConfig(), size))[:num_boxes]


_mask_targets = jax.jit(mask_targets, static_argnames=("config", "size"))


def _ious(ours: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """IoU (n,) of bool masks (n, size, size); 1 where both are empty."""
    union = (ours | exact).sum(axis=(1, 2))
    return np.where(union > 0, (ours & exact).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotations", default="annotations.json")
    parser.add_argument("--crops", type=int, default=112)
    parser.add_argument("--size", type=int, default=28)
    arguments = parser.parse_args()
    comparison = compare(arguments.folder / arguments.annotations, crops=arguments.crops, size=arguments.size)
    print("\n".join(table_lines(comparison)))


if __name__ == "__main__":
    main()
