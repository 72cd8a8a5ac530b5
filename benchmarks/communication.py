"""Communication of data-parallel training and its predicted efficiency: `python -m benchmarks.communication`.

The first tables count parameters, and the all-reduces in the lowered training step of R50-FPN on two virtual devices
(`--compile`: also in the program compiled by XLA:CPU), which do not depend on the image size. The last table is
calculated, not measured, from the assumptions in SYSTEMS and the constants.
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
from mrcnn_jax.inference.devices import replicate
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

IMAGE_FLOP = 1.38e12  # of R50-FPN for a training image of 800x1088 (512 RoIs, 128 masks, stem and res2 frozen)
UTILIZATION = 0.3  # of the peak; lower values give a higher efficiency
BACKWARD = 2 / 3  # of a step, in which gradients can be reduced
# Bandwidths: NVIDIA's data sheet (NVLink 900 GB/s, half of it per direction; 989 TFLOP/s) and DGX H100's eight adapters
# of 400 Gb/s; cloud.google.com/tpu/docs/v5e and /v5p (1600 and 4800 Gbit/s per chip over 4 and 6 links, both
# directions). Of a torus, only one link per direction is counted, the least that a ring can use. Latencies are guesses.
MESSAGE_BYTES = 30 << 20  # XLA combines all-reduces up to this size on GPUs
SMALL_MESSAGES = 2  # counts before and losses after the backward pass


class System(NamedTuple):
    """A chip, and the slowest link of a ring of `chips`."""

    name: str
    peak: float  # FLOP/s in bfloat16
    chips: int
    bandwidth: float  # bytes/s per direction, over all parallel rings of a chip or node
    latency: float  # seconds per hop


SYSTEMS = [
    System("H100, NVLink 450 GB/s", 989e12, 8, 450e9, 2e-6),
    # One hop in eight leaves the node and takes 5 microseconds; the others take 2.
    *(System("H100, 400 Gb/s per GPU", 989e12, n, 8 * 50e9, 2.4e-6) for n in (64, 256)),
    *(System("H100, 400 Gb/s per node of 8", 989e12, n, 50e9, 2.4e-6) for n in (64, 256)),
    *(System("TPU v5e, one ICI link, 50 GB/s", 197e12, n, 50e9, 1e-6) for n in (8, 64, 256)),
    *(System("TPU v5p, one ICI link, 100 GB/s", 459e12, n, 100e9, 1e-6) for n in (8, 64, 256)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also compile the step, which takes minutes")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    # XLA does not reduce gradients of frozen parameters, which are constant zeros.
    print("| network | parameters, millions | frozen, millions | gradients of the others, MB |\n|---|---|---|---|")
    for name, model in NETWORKS.items():
        total, frozen = parameters(model)
        print(f"| {name} | {total / 1e6:.1f} | {frozen / 1e6:.2f} | {4 * (total - frozen) / 1e6:.1f} |")
    print("\n| R50-FPN | all-reduces | MB | below 4 kB |\n|---|---|---|---|", flush=True)
    lowered = lower_step(NETWORKS["R50-FPN"])
    print_row("as lowered", reduced_bytes(lowered.as_text()))
    if arguments.compile:
        compiled = lowered.compile()
        print_row("as compiled by XLA:CPU", compiled_bytes(compiled.as_text()))
    total, frozen = parameters(NETWORKS["R50-FPN"])
    print_efficiency(4 * (total - frozen))


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Return the number of parameters, and of those in frozen stages."""
    config = dataclasses.replace(config, num_classes=80)
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes(build_model(config))["params"])
    frozen = frozen_paths(config)
    sizes = [(math.prod(leaf.shape), frozen(tuple(str(key.key) for key in path))) for path, leaf in leaves]
    return sum(size for size, _ in sizes), sum(size for size, is_frozen in sizes if is_frozen)


def lower_step(model_config: ModelConfig) -> Any:
    """Return the lowered pmapped step for two small images on two devices."""
    config = Config(model=dataclasses.replace(model_config, num_classes=80))
    model = build_model(config.model)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"], frozen_paths(config.model))
    step = parallel.CompiledTrainStep(make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME))
    devices = jax.local_devices()
    batch = parallel.place_batch(remat.make_batch(config.model, 2, (64, 64)), devices)
    return step.lower(replicate(create_state(optimizer, variables), devices), batch, jax.random.key(0))


def reduced_bytes(text: str) -> list[int]:
    """Return the bytes of each all-reduce in a StableHLO module."""
    types = re.findall(r'"stablehlo\.all_reduce".*?\}\) : \(tensor<([^>]*)>', text, flags=re.DOTALL)
    return [_bytes(*kind.rpartition("x")[::2]) for kind in types]


def _bytes(shape: str, kind: str) -> int:
    return math.prod(map(int, shape.split("x"))) * WIDTHS[kind] if shape else WIDTHS[kind]


def compiled_bytes(text: str) -> list[int]:
    """Return the bytes of each all-reduce in compiled HLO, which may reduce several arrays."""
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
    """Print the predicted efficiency for `size` bytes of gradients."""
    print("\n| chips | links | images per chip | computation, ms | all-reduce, ms | efficiency | with overlap |")
    print("|---|---|---|---|---|---|---|")
    for system in SYSTEMS:
        for images in (1, 2, 4):
            computation = images * IMAGE_FLOP / (system.peak * UTILIZATION)
            gradients, small = reduction_time(system, size)
            exposed = max(0.0, gradients - BACKWARD * computation) + small
            cells = [computation * 1e3, (gradients + small) * 1e3]
            shares = [computation / (computation + gradients + small), computation / (computation + exposed)]
            print(
                f"| {system.chips} | {system.name} | {images} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"
                f" {' | '.join(f'{share:.0%}' for share in shares)} |"
            )


def reduction_time(system: System, size: int) -> tuple[float, float]:
    """Return the seconds of ring all-reduces: of `size` bytes of gradients, and of small messages without overlap."""
    hops = 2 * (system.chips - 1)
    messages = math.ceil(size / MESSAGE_BYTES)
    gradients = hops / system.chips * size / system.bandwidth + messages * hops * system.latency
    return gradients, SMALL_MESSAGES * hops * system.latency


if __name__ == "__main__":
    main()
