"""What devices tell each other in a training step, and what that leaves of their speed: predicted, not measured.

`python -m benchmarks.communication`. The first tables count all-reduces: of R50-FPN those in its lowered training step
on two virtual devices (`--compile`: also in the program that XLA:CPU makes of it), of the others their parameters. The
size of images does not matter for it. The last table is arithmetic: SYSTEMS and the constants say what is assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import remat
from mrcnn_jax.config import Config, ModelConfig, presets
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.training import parallel
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import create_state, make_train_step

NETWORKS = {
    "R50-FPN": presets.detectron2(),
    "R101-FPN": presets.detectron2(presets.RESNET101),
    "X101-32x8d-FPN": presets.detectron2(presets.RESNEXT101_32X8D),
    "R50-FPN, SyncBN": presets.detectron2_normed("sync_bn"),
}
WIDTHS = {"f32": 4, "bf16": 2, "i32": 4, "ui32": 4, "s32": 4, "u32": 4}  # bytes; names of StableHLO and of HLO

IMAGE = 1.38e12  # operations of R50-FPN for a training image of 800x1088 (512 RoIs, 128 masks, stem and res2 frozen)
UTILIZATION = 0.3  # of the peak; a lower one makes the network look better
BACKWARD = 2 / 3  # of a step: what gradients can travel beside
# Bandwidths: NVIDIA's data sheet (NVLink 900 GB/s, half of it each way; 989 TFLOP/s) and DGX H100's eight adapters of
# 400 Gb/s; cloud.google.com/tpu/docs/v5e and /v5p (1600 and 4800 Gbit/s a chip over 4 and 6 links, both ways). Of a
# torus only one link each way is counted, of what a ring can use the least. Latencies are guesses.
MESSAGE = 30 << 20  # bytes; XLA joins all-reduces up to this size on GPUs
SMALL_MESSAGES = 2  # counts before the backward pass, losses after it


class System(NamedTuple):
    """A chip, and the slowest part of a ring through `chips` of them."""

    name: str
    peak: float  # operations a second, bfloat16
    chips: int
    bandwidth: float  # bytes a second and direction, all parallel rings of a chip or node together
    latency: float  # seconds a hop


SYSTEMS = [
    System("H100, NVLink 450 GB/s", 989e12, 8, 450e9, 2e-6),
    # One hop in eight leaves the node: 5 microseconds, the others 2.
    *(System("H100, 400 Gb/s a GPU", 989e12, n, 8 * 50e9, 2.4e-6) for n in (64, 256)),
    *(System("H100, 400 Gb/s a node of 8", 989e12, n, 50e9, 2.4e-6) for n in (64, 256)),
    *(System("TPU v5e, one ICI link, 50 GB/s", 197e12, n, 50e9, 1e-6) for n in (8, 64, 256)),
    *(System("TPU v5p, one ICI link, 100 GB/s", 459e12, n, 100e9, 1e-6) for n in (8, 64, 256)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="minutes")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    # XLA leaves the frozen ones out: their gradients are zeros that it knows of.
    print("| network | parameters, millions | of them frozen | gradients of the others, MB |\n|---|---|---|---|")
    for name, model in NETWORKS.items():
        total, frozen = parameters(model)
        print(f"| {name} | {total / 1e6:.1f} | {frozen / 1e6:.2f} | {4 * (total - frozen) / 1e6:.1f} |")
    print("\n| R50-FPN | all-reduces | MB | of them below 4 kB |\n|---|---|---|---|", flush=True)
    lowered = lower_step(NETWORKS["R50-FPN"])
    print_row("as lowered", reduced_bytes(lowered.as_text()))
    if arguments.compile:
        compiled = lowered.compile()
        print_row("as compiled by XLA:CPU", compiled_bytes(compiled.as_text()))
    total, frozen = parameters(NETWORKS["R50-FPN"])
    print_efficiency(4 * (total - frozen))


def parameters(config: ModelConfig) -> tuple[int, int]:
    """All, and those of frozen stages, whose gradients are zeros."""
    config = dataclasses.replace(config, num_classes=80)
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes(build_model(config))["params"])
    frozen = frozen_paths(config)
    sizes = [(math.prod(leaf.shape), frozen(tuple(str(key.key) for key in path))) for path, leaf in leaves]
    return sum(size for size, _ in sizes), sum(size for size, is_frozen in sizes if is_frozen)


def lower_step(model_config: ModelConfig) -> Any:
    """The pmapped step of a batch of two small images on two devices."""
    config = Config(model=dataclasses.replace(model_config, num_classes=80))
    model = build_model(config.model)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"], frozen_paths(config.model))
    step = parallel.compile_train_step(
        make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
    )
    batch = parallel.place_batch(remat.make_batch(config.model, 2, (64, 64)))
    return step.lower(parallel.replicate(create_state(optimizer, variables)), batch, jax.random.key(0))


def reduced_bytes(text: str) -> list[int]:
    """Bytes of each all-reduce in a StableHLO module."""
    types = re.findall(r'"stablehlo\.all_reduce".*?\}\) : \(tensor<([^>]*)>', text, flags=re.DOTALL)
    return [_bytes(*kind.rpartition("x")[::2]) for kind in types]


def _bytes(shape: str, kind: str) -> int:
    return math.prod(map(int, shape.split("x"))) * WIDTHS[kind] if shape else WIDTHS[kind]


def compiled_bytes(text: str) -> list[int]:
    """The same of compiled HLO, where several arrays may be reduced together."""
    results = re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", text)
    return [
        sum(
            math.prod(int(n) for n in shape.split(",") if n)
            * {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}[kind]
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        )
        for result in results
    ]


def print_row(name: str, sizes: list[int]) -> None:
    print(f"| {name} | {len(sizes)} | {sum(sizes) / 1e6:.2f} | {sum(size < 4096 for size in sizes)} |", flush=True)


def print_efficiency(size: int) -> None:
    """Predicted for `size` bytes of gradients."""
    print("\n| chips | links | images a chip | step alone, ms | all-reduce, ms | efficiency | with overlap |")
    print("|---|---|---|---|---|---|---|")
    for system in SYSTEMS:
        for images in (1, 2, 4):
            alone = images * IMAGE / (system.peak * UTILIZATION)
            gradients, small = reduction_time(system, size)
            exposed = max(0.0, gradients - BACKWARD * alone) + small
            cells = [alone * 1e3, (gradients + small) * 1e3]
            shares = [alone / (alone + gradients + small), alone / (alone + exposed)]
            print(
                f"| {system.chips} | {system.name} | {images} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"
                f" {' | '.join(f'{share:.0%}' for share in shares)} |"
            )


def reduction_time(system: System, size: int) -> tuple[float, float]:
    """Seconds of a ring's all-reduces: of `size` bytes of gradients; of a few bytes, which nothing hides."""
    hops = 2 * (system.chips - 1)
    messages = math.ceil(size / MESSAGE)
    gradients = hops / system.chips * size / system.bandwidth + messages * hops * system.latency
    return gradients, SMALL_MESSAGES * hops * system.latency


if __name__ == "__main__":
    main()
