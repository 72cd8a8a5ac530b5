"""Host time and memory of an evaluation: `python -m benchmarks.evaluation [--images=5000] [--device_ms=40]`.

Random detections, 100 per image, with masks of 28 x 28, are pasted on images of 427 x 640 to 800 x 1088, encoded,
written as JSON and scored by the code of eval.py; a sleep replaces the device. Prints the CPU time per image of each
part, the time in which the device waited, and the resident memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.inference import detector
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.structures import Detections

SIZES = ((480, 640), (640, 480), (427, 640), (600, 800), (800, 1088))  # of images, equally frequent
NUM_CLASSES, NUM_DETECTIONS, NUM_INSTANCES, MASK_SIZE = 80, 100, 7, 28  # instances per image (COCO has 7.4)
POOL_SIZE = 50  # different images, which are repeated
BATCH_SIZE = 2
Pool = list[tuple[Detections, tuple[int, int]]]


def boxes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return boxes with areas like COCO's: 41 % small, 34 % medium, 24 % large. The first ones are annotated."""
    height, width = size
    side = np.exp(rng.normal(np.log(45), 1.1, NUM_DETECTIONS)).clip(6, 0.9 * min(size))
    ratio = np.exp(rng.normal(0, 0.4, NUM_DETECTIONS))
    extent = np.stack([(side * ratio).clip(4, width), (side / ratio).clip(4, height)], axis=1)
    corner = rng.random((NUM_DETECTIONS, 2)) * (np.array([width, height]) - extent)
    around = rng.integers(0, NUM_INSTANCES, NUM_DETECTIONS)  # most detections are near instances
    near = (rng.random(NUM_DETECTIONS) < 0.6) & (np.arange(NUM_DETECTIONS) >= NUM_INSTANCES)
    corner[near] = corner[around[near]] + rng.normal(0, 0.1, (near.sum(), 2)) * extent[around[near]]
    extent[near] = extent[around[near]]
    return np.concatenate([corner, corner + extent], axis=1).clip(0, [width, height] * 2).astype(np.float32)


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Return mask probabilities (D, M, M) of ellipses with uneven edges."""
    y, x = np.mgrid[-1 : 1 : MASK_SIZE * 1j, -1 : 1 : MASK_SIZE * 1j]
    radius = np.hypot(
        y / rng.uniform(0.6, 1.1, (NUM_DETECTIONS, 1, 1)), x / rng.uniform(0.6, 1.1, (NUM_DETECTIONS, 1, 1))
    )
    angle = np.arctan2(y, x)
    uneven = sum(
        rng.normal(0, 0.06, (NUM_DETECTIONS, 1, 1)) * np.cos(k * angle + rng.uniform(0, 7)) for k in range(1, 8)
    )
    return (1 / (1 + np.exp(10 * (radius - 0.85 + uneven)))).astype(np.float32)


def detections(seed: int, size: tuple[int, int]) -> Detections:
    """Return random detections of an image, in its pixels."""
    rng = np.random.default_rng(seed)
    return Detections(
        boxes=boxes(rng, size),
        scores=np.sort(rng.random(NUM_DETECTIONS).astype(np.float32) ** 2)[::-1],
        classes=np.where(
            rng.random(NUM_DETECTIONS) < 0.7, seed % NUM_CLASSES, rng.integers(0, NUM_CLASSES, NUM_DETECTIONS)
        ).astype(np.int32)
        + 1,
        masks=blobs(rng),
        keypoints=np.zeros((NUM_DETECTIONS, 0, 3), np.float32),
        valid=np.ones(NUM_DETECTIONS, bool),
        truncated=np.zeros((), bool),
    )


def annotations(detections: Detections, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return annotations of the first detections, with polygons that are shifted slightly."""
    entries = []
    for row in range(NUM_INSTANCES):
        x0, y0, x1, y1 = (float(value) for value in detections.boxes[row])
        bitmap = (detections.masks[row] >= 0.5).astype(np.uint8)
        outlines, _ = cv2.findContours(cv2.resize(bitmap, (112, 112)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
        polygons = [
            (outline.reshape(-1, 2) / 112 * [x1 - x0, y1 - y0] + [x0 + 1, y0]).clip(0, size[::-1]).ravel().tolist()
            for outline in outlines
            if len(outline) >= 3
        ]
        box = [x0, y0, x1 - x0, y1 - y0]
        entries.append(
            {"category_id": int(detections.classes[row]), "bbox": box, "segmentation": polygons, "iscrowd": 0}
        )
    return entries


def write_annotations(path: Path, pool: Pool, count: int) -> None:
    """Write the annotations of `count` images."""
    entries = [annotations(*item) for item in pool]
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": pool[i % POOL_SIZE][1][0], "width": pool[i % POOL_SIZE][1][1]}
            for i in range(count)
        ],
        "categories": [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)],
        "annotations": [{**entry, "image_id": i} for i in range(count) for entry in entries[i % POOL_SIZE]],
    }
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number
    path.write_text(json.dumps(content))


class Clock:
    """CPU time of functions, summed over threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                with self._lock:
                    self.seconds += time.thread_time() - start

        return wrapped


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def detect_all(pool: Pool, count: int, device: float, file: IO[bytes]) -> None:
    """Write the records of `count` images to a file, one line per image like eval.py, and print the time."""
    model = ModelConfig(num_classes=NUM_CLASSES)
    pasting, writing = Clock(), Clock()

    def finish(index: int, detected: Detections, network_size: Any) -> bytes:
        prediction = pasting.timed(postprocess)(detected, network_size, pool[index % POOL_SIZE][1], model)
        records = pasting.timed(prediction.to_coco)(index)
        return bytes(writing.timed(lambda: json.dumps(records, separators=(",", ":")).encode())())

    def detect(images: Any, sizes: Any) -> Detections:
        """Replace the device: return after the time of a batch."""
        time.sleep(device)
        return Detections(*(np.stack(field) for field in zip(*(pool[i % POOL_SIZE][0] for i in images), strict=True)))

    def batches() -> Iterator[detector.ImageBatch]:
        for start in range(0, count, BATCH_SIZE):
            indices = np.arange(start, min(start + BATCH_SIZE, count))
            sizes = np.array([pool[i % POOL_SIZE][1] for i in indices], np.int32)
            yield detector.ImageBatch(indices, sizes, indices, np.ones(len(indices), bool))

    start = time.perf_counter()
    for done, records in enumerate(detector.detect_batches(detect, batches(), finish), 1):
        file.write(records + b"\n")
        if done % max(count // 10, 1) == 0:
            print(f"{done:6d} images: resident {resident():5.0f} MB, records {file.tell() / 1e6:4.0f} MB", flush=True)
    wall = time.perf_counter() - start
    print(f"pasting and RLE: {1000 * pasting.seconds / count:.1f} ms of CPU per image")
    print(f"JSON: {1000 * writing.seconds / count:.1f} ms of CPU per image")
    print(f"total: {1000 * wall / count:.1f} ms per image; device only: {1000 * device / BATCH_SIZE:.1f} ms")


def score_all(truth: Path, count: int, file: IO[bytes]) -> None:
    """Score and analyze the records, and print the time."""
    scoring, total, analysis = Clock(), Clock(), Clock()
    for name in ("evaluate", "accumulate"):
        setattr(coco_metrics.COCOeval, name, scoring.timed(getattr(coco_metrics.COCOeval, name)))
    file.seek(0)
    results = [record for line in file for record in json.loads(line)]
    print(f"records as Python objects: resident {resident():.0f} MB")
    with contextlib.redirect_stdout(io.StringIO()):
        scores = total.timed(coco_metrics.score)(truth, results)
    print(f"segm/AP {scores.metrics['segm/AP']:.3f}, resident {resident():.0f} MB")
    print(f"pycocotools, boxes and masks: {1000 * scoring.seconds / count:.1f} ms of CPU per image")
    print(f"with reading and indexing: {1000 * total.seconds / count:.1f} ms of CPU per image")
    analysis.timed(analyze)(scores)
    print(f"analysis: {1000 * analysis.seconds / count:.1f} ms of CPU per image")
    print(f"peak resident: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--device_ms", type=float, default=40.0, help="milliseconds per batch of two images")
    arguments = parser.parse_args()
    pool = [(detections(i, SIZES[i % len(SIZES)]), SIZES[i % len(SIZES)]) for i in range(POOL_SIZE)]
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.json"
        write_annotations(truth, pool, arguments.images)
        with (Path(folder) / "results").open("w+b") as file:
            detect_all(pool, arguments.images, arguments.device_ms / 1000, file)
            score_all(truth, arguments.images, file)


if __name__ == "__main__":
    main()
