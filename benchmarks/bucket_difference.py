"""How far detections in the fixed buckets are from those in exact mode: the same model on the same photographs, twice.

    python benchmarks/bucket_difference.py --weights=FILE --model=maskrcnn_resnet50_fpn \\
        --config.data.root=FOLDER [--images=8]
    python benchmarks/bucket_difference.py --workdir=RUN --exact=detectron2

The model and its images are given as to eval.py. A detection of one mode has a partner in the other when the class is
the same and the boxes' IoU is above .5 / above .9; each has at most one. Where the model knows the annotated objects,
the average precisions of both modes are the last word.
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
from mrcnn_jax.inference import exact
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.weights import reference_models

_IOUS = (0.5, 0.9)
_THRESHOLDS = (0.05, 0.5)


def partners(first: Prediction, second: Prediction, least_iou: float) -> np.ndarray:
    """For each detection of `first`, best first, the index of its partner in `second`, or -1."""
    found = np.full(len(first), -1)
    if not len(first) or not len(second):
        return found
    corners, others = first.boxes.astype(np.float64), second.boxes.astype(np.float64)
    sizes = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1) for b in (corners, others)]
    overlap = np.asarray(coco_mask.iou(*sizes, np.zeros(len(others), np.uint8)))
    overlap[first.labels[:, None] != second.labels[None]] = 0
    for i in range(len(first)):
        best = int(overlap[i].argmax())
        if overlap[i, best] > least_iou:
            found[i] = best
            overlap[:, best] = 0
    return found


def share(pairs: list[tuple[Prediction, Prediction]], threshold: float) -> str:
    """How many detections of the first of each pair, above `threshold`, have a partner of any score in the second."""
    chosen = [(first[first.scores >= threshold], second) for first, second in pairs]
    total = sum(len(first) for first, _ in chosen)
    matched = [sum((partners(*pair, iou) >= 0).sum() for pair in chosen) for iou in _IOUS]
    return " / ".join(f"{count / max(total, 1):.1%}" for count in matched) + f" of {total}"


def apart(pairs: list[tuple[Prediction, Prediction]], threshold: float) -> str:
    """How far those are apart that have a close partner: scores and corners, mean (95 %)."""
    scores, corners = [np.zeros(0)], [np.zeros(0)]
    for first, second in pairs:
        first = first[first.scores >= threshold]
        partner = partners(first, second, max(_IOUS))
        has = partner >= 0
        scores.append(np.abs(first.scores[has] - second.scores[partner[has]]))
        corners.append(np.abs(first.boxes[has] - second.boxes[partner[has]]).ravel())
    cells = []
    for differences, digits in ((np.concatenate(scores), 4), (np.concatenate(corners), 2)):
        some = differences if len(differences) else np.array([np.nan])
        cells.append(f"{some.mean():.{digits}f} ({np.quantile(some, 0.95):.{digits}f})")
    return " | ".join(cells)


def report(pairs: list[tuple[Prediction, Prediction]], alike: list[bool]) -> None:
    """Print the table for pairs (exact, bucket). `alike`: the images whose padded shape is the same in both modes."""
    print("| images padded to | score | of exact, found in buckets | of buckets, found in exact |", end="")
    print(" scores apart, mean (95 %) | corners apart, pixels, mean (95 %) |")
    print("|---|---|---|---|---|---|")
    for name, wanted in (("one shape", True), ("two shapes", False)):
        chosen = [pair for pair, same in zip(pairs, alike, strict=True) if same == wanted]
        for threshold in _THRESHOLDS:
            there, back = share(chosen, threshold), share([pair[::-1] for pair in chosen], threshold)
            print(f"| {name}, {len(chosen)} | {threshold} | {there} | {back} | {apart(chosen, threshold)} |")


def average_precisions(config: Config, dataset: Dataset, chosen: list[int], predictions: list[Prediction]) -> str:
    """Box and, where there are masks, mask AP on the images `chosen`."""
    ids = dataset.ids[chosen].tolist()
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
    """What the model finds in one mode; always one by one, so that both modes run alike."""
    settings = dataclasses.replace(config.eval, resize=mode, batch_size=len(paths) + 1)
    return Predictor(dataclasses.replace(config, eval=settings), variables)(paths)


def padded_alike(config: Config, peer: Any, sizes: np.ndarray) -> list[bool]:
    """Whether exact mode and buckets have the same padded shape, for images of these (n, 2) sizes."""
    data, settings = config.data, dataclasses.replace(config.eval, resize=peer)
    edges = {"shortest_edge": data.shortest_edge_eval, "longest_edge": data.longest_edge}
    chosen = [data.buckets[i] for i in choose_buckets(sizes, data.buckets, **edges)]
    blank = [np.zeros((*size, 3), np.uint8) for size in sizes]
    shapes = [exact.network_input(image, dataclasses.replace(config, eval=settings))[0].shape[:2] for image in blank]
    return [a == b for a, b in zip(chosen, shapes, strict=True)]


def main() -> None:
    """Print what has a partner, and both modes' average precisions."""
    parser = common.make_parser("", __doc__, overrides=True)
    parser.prog = "bucket_difference.py"
    common.add_model(parser)
    parser.add_argument("--exact", choices=reference_models.ORIGINS, help="whose resize; default: the --model's")
    parser.add_argument("--images", type=int, help="only so many, the first ones")
    arguments, overrides = common.parse(parser, sys.argv[1:])
    if not arguments.exact and not arguments.model:
        parser.error("whose exact mode? --exact=torchvision or detectron2")
    peer = arguments.exact or reference_models.origin_of(arguments.model)
    compilation_cache.enable()
    config, variables = common.model_source(parser, arguments).load()
    config = apply_overrides(config, overrides)
    dataset = load_split(config.data, "eval")
    chosen = list(range(len(dataset)))[: arguments.images]
    paths = [dataset.image_path(i) for i in chosen]
    alone, bucket = (predict(config, variables, mode, paths) for mode in (peer, "bucket"))
    print(f"{len(paths)} images; exact mode as {peer}\n")
    report(list(zip(alone, bucket, strict=True)), padded_alike(config, peer, dataset.sizes[chosen]))
    for name, predictions in (("exact", alone), ("buckets", bucket)):
        print(f"{name}: {average_precisions(config, dataset, chosen, predictions)}")


if __name__ == "__main__":
    sys.exit(common.run(main))
