"""What masks cost at test time: `python -m benchmarks.mask_branch`.

The same network with its mask head and without it, on one made-up picture, in turns. He et al. 2017 (section 3.1) found
about 20 % on typical models. Pasting the masks on the image is the host's work and measured apart. The boxes must be
the same, to the bit.
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

from benchmarks import remat, side_ours, surroundings
from mrcnn_jax.config import ModelConfig, presets
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
    parser.add_argument("--shape", nargs=2, type=int, default=SHAPE, help="height and width of the picture")
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1])
    print(f"{surroundings.machine()}; one picture of {shape[0]}x{shape[1]}, {arguments.rounds} rounds")
    print("| network | s without masks, median (min) | s with masks | share of the masks | pasting, s |")
    print("|---|---|---|---|---|")
    for name in arguments.networks:
        print(f"| {name} | {row(NETWORKS[name], shape, arguments.rounds)} |", flush=True)


def row(config: ModelConfig, shape: tuple[int, int], rounds: int) -> str:
    """Both sides in turns. The share is the median of the rounds' own."""
    config = dataclasses.replace(config, num_classes=80)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    variables = remat.make_variables(mask_rcnn.build_model(config))
    runs = [inference(model, variables, picture) for model in (dataclasses.replace(config, mask=None), config)]
    plain, masked = (run() for run in runs)
    for field in ("boxes", "scores", "classes", "valid"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(masked, field))
    seconds = [[timed(run) for run in runs] for _ in range(rounds)]
    without, with_masks = (f"{statistics.median(side):.2f} ({min(side):.2f})" for side in zip(*seconds, strict=True))
    share = statistics.median(both / alone - 1 for alone, both in seconds)
    pasting = timed(lambda: side_ours.full_frames(masked.masks[0], masked.boxes[0], shape))
    return f"{without} | {with_masks} | {100 * share:.0f} % | {pasting:.2f}"


def inference(config: ModelConfig, variables: Any, picture: np.ndarray) -> Callable[[], Any]:
    """A compiled inference of one picture, whose result is on the host."""
    detect = jax.jit(functools.partial(mask_rcnn.detect, mask_rcnn.build_model(config)))
    placed = jax.device_put((variables, picture, np.int32([picture.shape[1:3]])))
    return lambda: jax.tree.map(np.asarray, detect(*placed))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
