"""Time of the mask head in inference: `python -m benchmarks.mask_branch`.

Runs a network with and without its mask head alternately, on an image of noise. He et al. 2017 (section 3.1) report an
overhead of about 20 % on typical models. Pasting, which runs on the host, is measured separately. The boxes must be
identical.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import bench_ours, environment, remat
from mrcnn_jax.config import ModelConfig, presets
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models import mask_rcnn

SHAPE = (800, 1088)
NETWORKS = {
    "R50-FPN": presets.detectron2(),
    "R101-FPN": presets.detectron2(presets.RESNET101),
    "R50-C4": presets.detectron2(presets.RESNET50, "c4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--shape", nargs=2, type=int, default=SHAPE, help="height and width of the image")
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1])
    print(f"{environment.describe_machine()}; one image of {shape[0]}x{shape[1]}, {arguments.rounds} rounds")
    print("| network | s without masks, median (min) | s with masks | overhead | pasting, s |")
    print("|---|---|---|---|---|")
    for name in arguments.networks:
        print(f"| {name} | {table_row(NETWORKS[name], shape, arguments.rounds)} |", flush=True)


def table_row(config: ModelConfig, shape: tuple[int, int], rounds: int) -> str:
    """Measure one network; the overhead is the median over the rounds."""
    config = dataclasses.replace(config, num_classes=80)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    variables = remat.make_variables(mask_rcnn.build_model(config))
    runs = [inference(model, variables, image) for model in (dataclasses.replace(config, mask=None), config)]
    plain, masked = (run() for run in runs)
    for field in ("boxes", "scores", "classes", "valid"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(masked, field))
    seconds = [[timed(run) for run in runs] for _ in range(rounds)]
    without, with_masks = (f"{statistics.median(s):.2f} ({min(s):.2f})" for s in zip(*seconds, strict=True))
    overhead = statistics.median(b / a - 1 for a, b in seconds)
    pasting = timed(lambda: bench_ours.full_frames(masked.masks[0], masked.boxes[0], shape))
    return f"{without} | {with_masks} | {100 * overhead:.0f} % | {pasting:.2f}"


def inference(config: ModelConfig, variables: Any, image: np.ndarray) -> Callable[[], Any]:
    """Return a function that runs the compiled inference and copies the result to the host."""
    program = jax.jit(functools.partial(detect, mask_rcnn.build_model(config)))
    placed = jax.device_put((variables, image, np.int32([image.shape[1:3]])))
    return lambda: jax.tree.map(np.asarray, program(*placed))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
