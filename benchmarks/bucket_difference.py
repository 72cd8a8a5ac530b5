"""Differences between detections in fixed buckets and in exact mode, for the same model and images.

    python benchmarks/bucket_difference.py --weights=FILE --model=maskrcnn_resnet50_fpn \\
        --config.data.root=FOLDER [--images=8]
    python benchmarks/bucket_difference.py --workdir=RUN --exact=detectron2

The model and its images are given as to eval.py. Detections of both modes are matched one to one if the class is the
same and the IoU of the boxes is above 0.5 / above 0.9. The average precisions of both modes follow, which are
meaningful if the annotations are of the model's categories.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.cli import common
from mrcnn_jax.config import Config, apply_overrides
from mrcnn_jax.data.batching import choose_buckets
from mrcnn_jax.data.dataset import Dataset, load_split
from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.inference import reference_preprocessing
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.weights import reference_models

_IOUS = (0.5, 0.9)
_THRESHOLDS = (0.05, 0.5)


def match(first: Prediction, second: Prediction, min_iou: float) -> np.ndarray:
    """Return for each detection of `first`, in order of scores, the index of its match in `second`, or -1."""
    matches = np.full(len(first), -1)
    if not len(first) or not len(second):
        return matches
    corners, others = first.boxes.astype(np.float64), second.boxes.astype(np.float64)
    sizes = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1) for b in (corners, others)]
    overlap = np.asarray(coco_mask.iou(*sizes, np.zeros(len(others), np.uint8)))
    overlap[first.labels[:, None] != second.labels[None]] = 0
    for i in range(len(first)):
        best = int(overlap[i].argmax())
        if overlap[i, best] > min_iou:
            matches[i] = best
            overlap[:, best] = 0
    return matches


def matched_share(pairs: list[tuple[Prediction, Prediction]], threshold: float) -> str:
    """Return the share of detections of the first of each pair, above `threshold`, with a match in the second."""
    selected = [(first[first.scores >= threshold], second) for first, second in pairs]
    total = sum(len(first) for first, _ in selected)
    matched = [sum((match(*pair, iou) >= 0).sum() for pair in selected) for iou in _IOUS]
    return " / ".join(f"{count / max(total, 1):.1%}" for count in matched) + f" of {total}"


def differences(pairs: list[tuple[Prediction, Prediction]], threshold: float) -> str:
    """Return the differences of scores and corners of matched detections, mean (95th percentile)."""
    scores, corners = [np.zeros(0)], [np.zeros(0)]
    for first, second in pairs:
        first = first[first.scores >= threshold]
        matches = match(first, second, max(_IOUS))
        matched = matches >= 0
        scores.append(np.abs(first.scores[matched] - second.scores[matches[matched]]))
        corners.append(np.abs(first.boxes[matched] - second.boxes[matches[matched]]).ravel())
    cells = []
    for values, digits in ((np.concatenate(scores), 4), (np.concatenate(corners), 2)):
        values = values if len(values) else np.array([np.nan])
        cells.append(f"{values.mean():.{digits}f} ({np.quantile(values, 0.95):.{digits}f})")
    return " | ".join(cells)


def report(pairs: list[tuple[Prediction, Prediction]], same_shape: list[bool]) -> None:
    """Print the table for pairs (exact, bucket). `same_shape`: whether both modes pad the image to the same shape."""
    print("| images padded to | score | exact, matched in buckets | buckets, matched in exact |", end="")
    print(" score difference, mean (95 %) | corner difference, pixels, mean (95 %) |")
    print("|---|---|---|---|---|---|")
    for name, wanted in (("one shape", True), ("two shapes", False)):
        selected = [pair for pair, same in zip(pairs, same_shape, strict=True) if same == wanted]
        for threshold in _THRESHOLDS:
            exact_share = matched_share(selected, threshold)
            bucket_share = matched_share([pair[::-1] for pair in selected], threshold)
            cells = f"{exact_share} | {bucket_share} | {differences(selected, threshold)}"
            print(f"| {name}, {len(selected)} | {threshold} | {cells} |")


def average_precisions(config: Config, dataset: Dataset, indices: list[int], predictions: list[Prediction]) -> str:
    """Return box AP and, if there are masks, mask AP on the images `indices`."""
    ids = dataset.ids[indices].tolist()
    records = [r for image_id, p in zip(ids, predictions, strict=True) for r in p.to_coco(image_id)]
    masks = dataset.has_masks and any(p.mask_probabilities is not None for p in predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = coco_metrics.evaluate(
            dataset.annotations_path,
            records,
            iou_types=["bbox", "segm"] if masks else ["bbox"],
            image_ids=ids,
            category_names=config.data.categories,
        )
    return ", ".join(f"{kind} AP {metrics[f'{kind}/AP']:.4f}" for kind in ("bbox", "segm") if f"{kind}/AP" in metrics)


def predict(config: Config, variables: Any, mode: Any, paths: list[Any]) -> list[Prediction]:
    """Return the predictions in one mode, one image at a time, so that both modes run the same way."""
    settings = dataclasses.replace(config.eval, resize=mode, batch_size=len(paths) + 1)
    return Predictor(dataclasses.replace(config, eval=settings), variables)(paths)


def have_same_shape(config: Config, origin: Any, sizes: np.ndarray) -> list[bool]:
    """Return whether exact mode and buckets have the same padded shape, for images of `sizes` (n, 2)."""
    data, settings = config.data, dataclasses.replace(config.eval, resize=origin)
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    buckets = [data.buckets[i] for i in choose_buckets(sizes, data.buckets, **edges)]
    blank = [np.zeros((*size, 3), np.uint8) for size in sizes]
    shapes = [
        reference_preprocessing.network_input(image, dataclasses.replace(config, eval=settings))[0].shape[:2]
        for image in blank
    ]
    return [a == b for a, b in zip(buckets, shapes, strict=True)]


def main() -> None:
    """Print the shares of matched detections, their differences, and the average precisions of both modes."""
    parser = common.make_parser("", __doc__, overrides=True)
    parser.prog = "bucket_difference.py"
    common.add_model(parser)
    parser.add_argument(
        "--exact",
        choices=reference_models.ORIGINS,
        help="reference implementation of exact mode (default: that of --model)",
    )
    parser.add_argument("--images", type=int, help="number of images, from the first (default: all)")
    arguments, overrides = common.parse(parser, sys.argv[1:])
    if not arguments.exact and not arguments.model:
        parser.error("give --exact=torchvision or --exact=detectron2")
    origin = arguments.exact or reference_models.origin_of(arguments.model)
    compilation_cache.enable()
    config, variables = common.model_source(parser, arguments).load()
    config = apply_overrides(config, overrides)
    dataset = load_split(config.data, "eval")
    indices = list(range(len(dataset)))[: arguments.images]
    paths = [dataset.image_path(i) for i in indices]
    exact_mode, bucket_mode = (predict(config, variables, mode, paths) for mode in (origin, "bucket"))
    print(f"{len(paths)} images; exact mode of {origin}\n")
    pairs = list(zip(exact_mode, bucket_mode, strict=True))
    report(pairs, have_same_shape(config, origin, dataset.sizes[indices]))
    for name, predictions in (("exact", exact_mode), ("buckets", bucket_mode)):
        print(f"{name}: {average_precisions(config, dataset, indices, predictions)}")


if __name__ == "__main__":
    sys.exit(common.run(main))
