"""Memory and time of a training step with and without `train.remat`: `python -m benchmarks.remat`.

Each case is a new process: one of MODELS, a batch in one bucket, one device. "Temporary" is the memory that the
compiled program needs in addition to arguments and results. "Resident" is the peak resident memory of the process
during a step (Linux, VmHWM), which includes weights, gradients, optimizer state, the compiled program and Python.

XLA:CPU removes the optimization barriers and then merges the recomputation with the first computation, so that
`train.remat` has no effect there (see `--as-is`). GPUs and TPUs keep the barriers. This benchmark keeps them too, to
measure the effect of remat on a CPU.
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
    parser.add_argument("--rounds", type=int, default=3, help="number of timed steps; 0 only compiles")
    parser.add_argument("--as-is", action="store_true", help="with the default compiler options of XLA:CPU")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    print("| network | images | remat | temporary, GB | resident peak, GB | s per step, median (min) | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for images in arguments.images:
            for remat in (False, True):
                print_row(name, images, remat, arguments.rounds, arguments.as_is)


def print_row(name: str, images: int, remat: bool, rounds: int, as_is: bool) -> None:
    case = json.dumps([name, images, remat, rounds, as_is])
    command = [sys.executable, "-m", "benchmarks.remat", "--case", case]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cells = ["-"] * 3
    if rounds:
        cells = [
            f"{max(result['peaks']) / 1e9:.2f}",
            f"{statistics.median(result['seconds']):.1f} ({min(result['seconds']):.1f})",
            f"{min(result['cpu']):.1f}",
        ]
    remat_cell, temporary = "yes" if remat else "no", result["temporary"] / 1e9
    print(f"| {name} | {images} | {remat_cell} | {temporary:.2f} | {' | '.join(cells)} |", flush=True)


def measure(name: str, images: int, remat: bool, rounds: int, as_is: bool) -> dict[str, Any]:
    """Compile a step, and time `rounds` of them after a warm-up."""
    options: dict[str, Any] = {} if as_is else dict(KEEP_BARRIERS)
    if not rounds:
        options["xla_backend_optimization_level"] = 0  # compiles faster, with the same memory
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
    result: dict[str, Any] = {"temporary": compiled.memory_analysis().temp_size_in_bytes}
    result |= {"peaks": [], "seconds": [], "cpu": []}
    for index in range(rounds + 1 if rounds else 0):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batch, key))
        assert metrics["finite"]
        if index:
            result["seconds"].append(time.perf_counter() - wall)
            result["cpu"].append(time.process_time() - cpu)
            result["peaks"].append(resident_peak())
    return result


def resident_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def make_variables(model: MaskRCNN) -> Any:
    """Return small random kernels and identity norms, which avoids compiling the initialization."""
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return rng.normal(0, 0.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(value, variable_shapes(model))


def make_batch(config: ModelConfig, count: int, shape: tuple[int, int] = SHAPE) -> Batch:
    """Return noise with twenty objects per image in a hundred slots, with sides of a tenth to a half of it."""
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
