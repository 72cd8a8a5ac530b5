"""FLOP, memory and time of a training step with `train.accumulate`: `python -m benchmarks.accumulation [--rounds=3]`.

First, FLOP of a step of a recipe's network at its image size, counted before compilation. Then memory and time of a
smaller network, with a new process for each case. "Temporary" is the memory that the compiled program needs in addition
to arguments and results: on CPU, where the parts are unrolled, and as the loop of accelerators (compiled for CPU, but
not timed, because convolutions in loops are slow there).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import optax

from mrcnn_jax.config import Config, ModelConfig, TrainConfig, presets
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training import gradients
from mrcnn_jax.training.step import TrainState, create_state, make_train_step

PARTS = (1, 2, 4)
IMAGES, SLOTS = 8, 20
CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="number of timed steps; 0 only compiles")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*json.loads(arguments.case))))
        return
    recipe, shape = recipe_model(), (800, 1344)
    print(f"R50-FPN, {IMAGES} images of {shape[0]}x{shape[1]}, TFLOP per step\n\n| parts | step |\n|---|---|")
    for parts in PARTS:
        print(f"| {parts} | {flops(recipe, shape, parts) / 1e12:.2f} |", flush=True)
    print("\n| parts | temporary, MB | as a loop, MB | CPU s per step, median (min) | s | compilation, s |")
    print("|---|---|---|---|---|---|")
    for parts in PARTS:
        print_row(parts, arguments.rounds)


def recipe_model() -> ModelConfig:
    return dataclasses.replace(presets.detectron2(), num_classes=CLASSES)


def small_model() -> ModelConfig:
    """Return the same with ResNet-18, a quarter of the RoIs and group norm, without frozen layers."""
    model = recipe_model()
    backbone = dataclasses.replace(model.backbone, name="resnet18", norm="gn", frozen_stages=0)
    return dataclasses.replace(model, backbone=backbone, roi=dataclasses.replace(model.roi, batch_size=128))


def print_row(parts: int, rounds: int) -> None:
    results: dict[str, Any] = {}
    for loop in (False, True):
        case = json.dumps([parts, loop, 0 if loop else rounds])
        command = [sys.executable, "-m", "benchmarks.accumulation", "--case", case]
        results[str(loop)] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plain, loop = results["False"], results["True"]
    cells = ["-", "-"]
    if rounds:
        cells = [
            f"{statistics.median(plain['cpu']):.1f} ({min(plain['cpu']):.1f})",
            f"{statistics.median(plain['seconds']):.1f}",
        ]
    temporary = f"{plain['temporary'] / 1e6:.0f} | {loop['temporary'] / 1e6:.0f}"
    print(f"| {parts} | {temporary} | {' | '.join(cells)} | {plain['compilation']:.0f} |", flush=True)


def make_step(model_config: ModelConfig, parts: int) -> tuple[Any, Any]:
    """Return the step and the shapes of its state."""
    model, optimizer = build_model(model_config), optax.sgd(1e-4, momentum=0.9)
    config = Config(model=model_config, train=TrainConfig(batch_size=IMAGES, accumulate=parts))
    step = jax.jit(make_train_step(model, config, optimizer, lambda step: 1e-4), donate_argnums=0)
    return step, jax.eval_shape(lambda variables: create_state(optimizer, variables), variable_shapes(model))


def flops(model: ModelConfig, shape: tuple[int, int], parts: int) -> float:
    """Return FLOP before compilation, with unrolled parts. Iterations of other loops (NMS) count once."""
    step, state = make_step(model, parts)
    batch = jax.eval_shape(lambda: make_batch(model, shape))
    return float(step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).cost_analysis()["flops"])


def measure(parts: int, loop: bool, rounds: int) -> dict[str, Any]:
    """Compile a step, and time `rounds` of them after a warm-up."""
    if loop:
        gradients._scan = jax.lax.scan
    model = small_model()
    step, shapes = make_step(model, parts)
    state, batch, key = make_state(shapes), make_batch(model, (256, 256)), jax.random.key(0)
    before = time.process_time()
    compiled = step.lower(state, batch, key).compile()
    result: dict[str, Any] = {"compilation": time.process_time() - before, "seconds": [], "cpu": []}
    result["temporary"] = compiled.memory_analysis().temp_size_in_bytes
    for index in range(rounds + 1 if rounds else 0):
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batch, key))
        assert metrics["finite"]
        if index:
            result["seconds"].append(time.perf_counter() - wall)
            result["cpu"].append(time.process_time() - cpu)
    return result


def make_state(shapes: TrainState) -> TrainState:
    """Return a state of small random kernels and scales of 1, which avoids compiling the initialization."""
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, 0.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name == "scale", np.float32)

    empty: TrainState = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.device_put(empty._replace(params=jax.tree_util.tree_map_with_path(value, shapes.params)))


def make_batch(config: ModelConfig, shape: tuple[int, int]) -> Batch:
    """Return a batch of noise with twenty objects per image, with sides of a tenth to a half of it."""
    rng = np.random.default_rng(1)
    extent = np.float32([shape[1], shape[0]])
    corners = rng.uniform(0, 0.5, (IMAGES, SLOTS, 2)).astype(np.float32)
    sides = rng.uniform(0.1, 0.5, (IMAGES, SLOTS, 2)).astype(np.float32)
    boxes = np.concatenate([corners * extent, (corners + sides) * extent], axis=-1)
    classes = rng.integers(1, config.num_classes + 1, (IMAGES, SLOTS)).astype(np.int32)
    masks = rng.integers(0, 2, (IMAGES, SLOTS, config.mask_size, config.mask_size), dtype=np.uint8)
    keypoints = np.zeros((IMAGES, SLOTS, 0, 3), np.float32)
    truth = GroundTruth(boxes, classes, masks, boxes, keypoints, np.ones((IMAGES, SLOTS), bool))
    images = rng.integers(0, 256, (IMAGES, *shape, 3), dtype=np.uint8)
    sizes = np.tile(np.int32(shape), (IMAGES, 1))
    return Batch(images, sizes, np.arange(IMAGES, dtype=np.int32), np.ones(IMAGES, bool), truth)


if __name__ == "__main__":
    main()
