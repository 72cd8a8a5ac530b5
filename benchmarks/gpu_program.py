"""What XLA makes of inference and of the training step for an NVIDIA GPU, on a machine that has none.

    python -m benchmarks.gpu_program [--images 8 16] [--shape 800 1088]

R50-FPN in bfloat16 with 90 classes is compiled for the H100 that `h100.txtpb` describes; nothing runs. The interpreter
needs jax with the CUDA plugin (`pip install -e '.[cuda]'`), not a driver. Kernels are chosen without measuring them, so
matrix products may go to other libraries on a real GPU; the rest is the program that would run there.

Milliseconds are what the hardware allows (`hlo_text.py`), to rank kernels by. How many turns a loop will take often
depends on the data: --turns is for those.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: the plugin would look for a GPU

import jax
import numpy as np
import optax
from jax.experimental import topologies

from benchmarks.hlo_text import Kernel, Program
from mrcnn_jax.config import Config, ModelConfig, TrainConfig, presets
from mrcnn_jax.models.mask_rcnn import build_model, detect, variable_shapes
from mrcnn_jax.ops.masks import paste
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.step import create_state, make_train_step

TARGET = Path(__file__).with_name("h100.txtpb")
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
OBJECTS = 20  # in an image of the training batch
PARTS = ("backbone", "fpn", "rpn_head", "box_head", "mask_head")  # of the network


class Case(NamedTuple):
    """A function with the shapes of its arguments, and the indices of those that it may overwrite."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs=2, type=int, default=[8, 16], help="in inference and in the training step")
    parser.add_argument("--shape", nargs=2, type=int, default=[800, 1088], help="height and width, multiples of 32")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--remat", action="store_true", help="the training step with train.remat")
    parser.add_argument("--turns", type=int, default=4, help="of loops that run until they are done")
    parser.add_argument("--top", type=int, default=10, help="places in the source to list")
    parser.add_argument("--save", type=Path, help="a folder for the text of the programs")
    arguments = parser.parse_args()
    model = dataclasses.replace(
        presets.torchvision_model("maskrcnn_resnet50_fpn"), num_classes=90, compute_dtype=arguments.dtype
    )
    shape = (arguments.shape[0], arguments.shape[1])
    cases = {
        "inference": inference(model, arguments.images[0], shape),
        "training step": training(model, arguments.images[1], shape, arguments.remat),
    }
    for (name, case), images in zip(cases.items(), arguments.images, strict=True):
        compiled = compile_for(TARGET, case)
        if arguments.save:
            (arguments.save / f"{name.replace(' ', '_')}.hlo").write_text(compiled.as_text())
        print(f"\n## {name}, {images} images of {shape[0]}x{shape[1]}, {arguments.dtype}, jax {jax.__version__}\n")
        report(Program(compiled.as_text(), arguments.turns), compiled.memory_analysis(), arguments.top)


def inference(config: ModelConfig, images: int, shape: tuple[int, int]) -> Case:
    """Detection and whole masks, one image's masks at a time."""
    model = build_model(config)

    def run(variables: Any, pixels: Any, sizes: Any) -> Any:
        found = detect(model, variables, pixels, sizes)
        return found, jax.lax.map(whole, (found.masks, found.boxes))

    def whole(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        return paste(one[0], one[1], shape, rule="torchvision") >= 0.5

    return Case(run, (variable_shapes(model), array(np.uint8, images, *shape, 3), array(np.int32, images, 2)))


def training(config: ModelConfig, images: int, shape: tuple[int, int], remat: bool) -> Case:
    """A step of SGD with momentum."""
    model, optimizer = build_model(config), optax.sgd(1e-4, momentum=0.9)
    whole = Config(model=config, train=TrainConfig(remat=remat))
    step = make_train_step(model, whole, optimizer, optax.constant_schedule(1e-4))
    state = jax.eval_shape(functools.partial(create_state, optimizer), variable_shapes(model))
    truth = GroundTruth(
        boxes=array(np.float32, images, OBJECTS, 4),
        classes=array(np.int32, images, OBJECTS),
        masks=array(np.uint8, images, OBJECTS, 112, 112),
        mask_windows=array(np.float32, images, OBJECTS, 4),
        keypoints=array(np.float32, images, OBJECTS, 0, 3),
        valid=array(np.bool_, images, OBJECTS),
    )
    pixels, sizes = array(np.uint8, images, *shape, 3), array(np.int32, images, 2)
    batch = Batch(pixels, sizes, array(np.int32, images), array(np.bool_, images), truth)

    def run(state: Any, batch: Any, key: Any) -> Any:
        return step(state, batch, jax.random.wrap_key_data(key))

    return Case(run, (state, batch, array(np.uint32, 2)), (0,))


def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def compile_for(target: Path, case: Case) -> Any:
    """Compile for the GPU that a text of XLA's GpuTargetConfigProto describes."""
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        raise SystemExit("no CUDA plugin here: install jax[cuda13] (pip install -e '.[cuda]'), no GPU is needed")
    topology = topologies.get_topology_desc("", "cuda", target_config=target.read_text(), topology="1x1x1")
    here = jax.sharding.SingleDeviceSharding(topology.devices[0])
    options: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}  # nothing to measure on
    compiled = jax.jit(case.function, donate_argnums=case.donated, in_shardings=here, out_shardings=here)
    return compiled.lower(*case.arguments).compile(compiler_options=options)


def report(program: Program, memory: Any, top: int) -> None:
    """Print the tables of a program."""
    by_kind = grouped(program.kernels, lambda kernel: (kernel.kind,))
    print("| kernels | launches | GB | TFLOP | ms |\n|---|---|---|---|---|")
    for (kind,), kernels in by_kind:
        print(f"| {kind} | {costs(kernels)} |")
    print(f"| all | {costs(program.kernels)} |")
    print("\n| loop | turns | launches a turn | GB | TFLOP | ms |\n|---|---|---|---|---|---|")
    for loop in program.loops:
        turns = "until done" if loop.turns is None else loop.turns
        print(f"| {loop.where} {short(loop.scope)} | {turns} | {costs(loop.kernels)} |")
    print("\n| place | part | kernels | launches | GB | TFLOP | ms |\n|---|---|---|---|---|---|---|")
    places = grouped(program.kernels, lambda kernel: (kernel.where, short(kernel.scope), kernel.kind))
    for (where, scope, kind), kernels in places[:top]:
        print(f"| {where} | {scope} | {kind} | {costs(kernels)} |")
    arrays = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "results in donated arguments": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    print("\nMemory, GB: " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in arrays.items()))


def grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], tuple[str, ...]]) -> list[tuple[Any, list[Kernel]]]:
    """Kernels by key, what costs most first."""
    groups: dict[tuple[str, ...], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[key(kernel)].append(kernel)
    return sorted(groups.items(), key=lambda item: -sum(kernel.times * kernel.seconds for kernel in item[1]))


def costs(kernels: Iterable[Kernel]) -> str:
    """Launches, GB, TFLOP and milliseconds as cells of a table."""
    kernels = list(kernels)
    launches = sum(kernel.times * kernel.launches for kernel in kernels)
    moved, operations, seconds = (
        sum(kernel.times * getattr(kernel, name) for kernel in kernels) for name in ("bytes", "operations", "seconds")
    )
    return f"{launches} | {moved / 1e9:.2f} | {operations / 1e12:.2f} | {1000 * seconds:.2f}"


def short(scope: str) -> str:
    """The part of the network, and the direction: what JAX's name of an operation tells of them."""
    direction = "gradient of " if "transpose(" in scope else ""
    names = [part.split(".")[-1].rstrip(")") for part in scope.split("/") if part]
    known = [name for name in names if name in PARTS]
    return direction + (known[0] if known else names[-1])


if __name__ == "__main__":
    main()
