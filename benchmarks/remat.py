"""Memory and time of a training step with and without `train.remat`: `python -m benchmarks.remat`.

Each case is a process of its own, so that its peak is its own: R50-FPN (or another of MODELS) of Detectron2's flavor,
a batch in one bucket, one device. "Temporary" is what XLA's plan of the compiled program asks for beside arguments and
results; "resident" is the largest resident size of the process in a step, which adds weights, gradients, optimizer
state, the compiled program and Python. It is Linux's own count (VmHWM, set back before each step).

XLA:CPU removes the barriers before the second computation and then shares it with the first, so there `train.remat`
changes nothing (`--as-is` shows it). GPUs and TPUs keep them. So do these cases, to see on a CPU what remat is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mrcnn_jax.config import Config, ModelConfig, TrainConfig, presets
from mrcnn_jax.models.mask_rcnn import MaskRCNN, build_model, variable_shapes
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import create_state, make_train_step

SHAPE = (800, 1088)
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
MODELS = {
    "R50-FPN": presets.detectron2(),
    "R101-FPN": presets.detectron2(presets.RESNET101),
    "X101-32x8d-FPN": presets.detectron2(presets.RESNEXT101_32X8D),
    "R50-FPN, SyncBN": presets.detectron2_normed("sync_bn"),
    "R50-FPN, keypoints and masks": presets.with_keypoints(presets.detectron2()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["R50-FPN"], choices=MODELS)
    parser.add_argument("--images", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed; 0 compiles only")
    parser.add_argument("--as-is", action="store_true", help="as XLA:CPU compiles by itself")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    print("| network | images | remat | temporary, GB | resident peak, GB | s a step, median (min) | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for images in arguments.images:
            for remat in (False, True):
                print_row(name, images, remat, arguments.rounds, arguments.as_is)


def print_row(name: str, images: int, remat: bool, rounds: int, as_is: bool) -> None:
    case = json.dumps([name, images, remat, rounds, as_is])
    command = [sys.executable, "-m", "benchmarks.remat", "--case", case]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cells = ["-"] * 3
    if rounds:
        cells = [
            f"{max(found['peaks']) / 1e9:.2f}",
            f"{statistics.median(found['seconds']):.1f} ({min(found['seconds']):.1f})",
            f"{min(found['cpu']):.1f}",
        ]
    remat_cell, temporary = "yes" if remat else "no", found["temporary"] / 1e9
    print(f"| {name} | {images} | {remat_cell} | {temporary:.2f} | {' | '.join(cells)} |", flush=True)


def measure(name: str, images: int, remat: bool, rounds: int, as_is: bool) -> dict[str, Any]:
    """Compile one step, take `rounds` of them after one that is not counted."""
    options: dict[str, Any] = {} if as_is else dict(KEEP_BARRIERS)
    if not rounds:
        options["xla_backend_optimization_level"] = 0  # the plan of the memory is the same, and sooner there
    train = TrainConfig(remat=remat)
    config = Config(model=dataclasses.replace(MODELS[name], num_classes=80), train=train)
    model = build_model(config.model)
    variables = make_variables(model)
    schedule = make_schedule(config.optimizer, train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"], frozen_paths(config.model))
    state = jax.device_put(create_state(optimizer, variables))
    batch, key = jax.device_put((make_batch(config.model, images), jax.random.key(0)))
    step = jax.jit(make_train_step(model, config, optimizer, schedule), donate_argnums=0, compiler_options=options)
    compiled = step.lower(state, batch, key).compile()
    found: dict[str, Any] = {"temporary": compiled.memory_analysis().temp_size_in_bytes}
    found |= {"peaks": [], "seconds": [], "cpu": []}
    for index in range(rounds + 1 if rounds else 0):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batch, key))
        assert metrics["finite"]
        if index:
            found["seconds"].append(time.perf_counter() - wall)
            found["cpu"].append(time.process_time() - cpu)
            found["peaks"].append(resident_peak())
    return found


def resident_peak() -> int:
    """Bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def make_variables(model: MaskRCNN) -> Any:
    """Small random kernels, and norms that do nothing yet: quicker than compiling the networks' own initialization."""
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return rng.normal(0, 0.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(value, variable_shapes(model))


def make_batch(config: ModelConfig, count: int, shape: tuple[int, int] = SHAPE) -> Batch:
    """Noise with twenty objects an image, of sides from a tenth to a half of it, in a hundred slots."""
    rng = np.random.default_rng(1)
    extent = np.float32([shape[1], shape[0]])
    sides = rng.uniform(0.1, 0.5, (count, 100, 2)) * extent
    corner = rng.uniform(0, 1, sides.shape) * (extent - sides)
    boxes = np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)
    slots = boxes.shape[:2]
    points = np.broadcast_to(boxes[:, :, None].reshape(*slots, 2, 2).mean(2, keepdims=True), (*slots, 1, 2))
    keypoints = np.concatenate([points, np.full((*slots, 1, 1), 2)], axis=-1).repeat(config.num_keypoints, 2)
    truth = GroundTruth(
        boxes=boxes,
        classes=np.ones(slots, np.int32),
        masks=np.ones((*slots, 112, 112), np.uint8),
        mask_windows=boxes,
        keypoints=keypoints.astype(np.float32),
        valid=np.broadcast_to(np.arange(100) < 20, slots),
    )
    images = rng.integers(0, 256, (count, *shape, 3), dtype=np.uint8)
    return Batch(
        images, np.tile(np.int32(shape), (count, 1)), np.arange(count, dtype=np.int32), np.ones(count, bool), truth
    )


if __name__ == "__main__":
    main()
