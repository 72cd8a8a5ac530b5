"""Analysis of the compiled programs of inference and training for an NVIDIA GPU, on a machine without one.

    python -m benchmarks.gpu_program [--images 8 16] [--shape 800 1088]

R50-FPN in bfloat16 with 90 classes is compiled for the H100 in `h100.txtpb`; nothing is run. The interpreter
needs jax with the CUDA plugin (`pip install -e '.[cuda]'`), but no driver. Because there is no autotuning, matrix
products may use other libraries on a real GPU; the rest of the program is the same.

Milliseconds are lower bounds (`hlo_costs.py`), to rank kernels. --turns is the assumed number of iterations of loops
whose trip count depends on the data.
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

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported, because the plugin would search for a GPU

import jax
import numpy as np
import optax
from jax.experimental import topologies

from benchmarks.hlo_costs import Kernel, Program
from mrcnn_jax.config import Config, ModelConfig, TrainConfig, presets
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.ops.masks import paste
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.step import create_state, make_train_step

TARGET = Path(__file__).with_name("h100.txtpb")
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
NUM_OBJECTS = 20  # per training image
PARTS = ("backbone", "fpn", "rpn_head", "box_head", "mask_head")  # of the network


class JitCase(NamedTuple):
    """A function, the shapes of its arguments, and the indices of donated ones."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", nargs=2, type=int, default=[8, 16], help="batch sizes of inference and of the training step"
    )
    parser.add_argument("--shape", nargs=2, type=int, default=[800, 1088], help="height and width, multiples of 32")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--remat", action="store_true", help="the training step with train.remat")
    parser.add_argument("--turns", type=int, default=4, help="assumed iterations of loops without a known trip count")
    parser.add_argument("--top", type=int, default=10, help="number of source lines to list")
    parser.add_argument("--save", type=Path, help="folder for the HLO text of the programs")
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


def inference(config: ModelConfig, images: int, shape: tuple[int, int]) -> JitCase:
    """Return the case of detection with pasted masks."""
    model = build_model(config)

    def run(variables: Any, pixels: Any, sizes: Any) -> Any:
        detections = detect(model, variables, pixels, sizes)
        return detections, jax.lax.map(paste_image, (detections.masks, detections.boxes))

    def paste_image(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return paste(pair[0], pair[1], shape, rule="torchvision") >= 0.5

    return JitCase(run, (variable_shapes(model), array(np.uint8, images, *shape, 3), array(np.int32, images, 2)))


def training(config: ModelConfig, images: int, shape: tuple[int, int], remat: bool) -> JitCase:
    """Return the case of a training step of SGD with momentum."""
    model, optimizer = build_model(config), optax.sgd(1e-4, momentum=0.9)
    full_config = Config(model=config, train=TrainConfig(remat=remat))
    step = make_train_step(model, full_config, optimizer, optax.constant_schedule(1e-4))
    state = jax.eval_shape(functools.partial(create_state, optimizer), variable_shapes(model))
    truth = GroundTruth(
        boxes=array(np.float32, images, NUM_OBJECTS, 4),
        classes=array(np.int32, images, NUM_OBJECTS),
        masks=array(np.uint8, images, NUM_OBJECTS, 112, 112),
        mask_windows=array(np.float32, images, NUM_OBJECTS, 4),
        keypoints=array(np.float32, images, NUM_OBJECTS, 0, 3),
        valid=array(np.bool_, images, NUM_OBJECTS),
    )
    pixels, sizes = array(np.uint8, images, *shape, 3), array(np.int32, images, 2)
    batch = Batch(pixels, sizes, array(np.int32, images), array(np.bool_, images), truth)

    def run(state: Any, batch: Any, key: Any) -> Any:
        return step(state, batch, jax.random.wrap_key_data(key))

    return JitCase(run, (state, batch, array(np.uint32, 2)), (0,))


def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def compile_for(target: Path, case: JitCase) -> Any:
    """Compile for the GPU that a text-format GpuTargetConfigProto of XLA describes."""
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        raise SystemExit("no CUDA plugin: install jax[cuda13] (pip install -e '.[cuda]'); no GPU is needed")
    topology = topologies.get_topology_desc("", "cuda", target_config=target.read_text(), topology="1x1x1")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    options: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}  # there is no device for it
    compiled = jax.jit(case.function, donate_argnums=case.donated, in_shardings=sharding, out_shardings=sharding)
    return compiled.lower(*case.arguments).compile(compiler_options=options)


def report(program: Program, memory: Any, top: int) -> None:
    """Print the tables of a program."""
    by_kind = grouped(program.kernels, lambda kernel: (kernel.kind,))
    print("| kernels | launches | GB | TFLOP | ms |\n|---|---|---|---|---|")
    for (kind,), kernels in by_kind:
        print(f"| {kind} | {costs(kernels)} |")
    print(f"| all | {costs(program.kernels)} |")
    print("\n| loop | iterations | launches per iteration | GB | TFLOP | ms |\n|---|---|---|---|---|---|")
    for loop in program.loops:
        iterations = "unknown" if loop.trip_count is None else loop.trip_count
        print(f"| {loop.source} {short(loop.scope)} | {iterations} | {costs(loop.kernels)} |")
    print("\n| source | part | kernels | launches | GB | TFLOP | ms |\n|---|---|---|---|---|---|---|")
    places = grouped(program.kernels, lambda kernel: (kernel.source, short(kernel.scope), kernel.kind))
    for (source, scope, kind), kernels in places[:top]:
        print(f"| {source} | {scope} | {kind} | {costs(kernels)} |")
    arrays = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "results in donated arguments": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    print("\nMemory, GB: " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in arrays.items()))


def grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], tuple[str, ...]]) -> list[tuple[Any, list[Kernel]]]:
    """Return kernels grouped by key, in descending order of their time."""
    groups: dict[tuple[str, ...], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[key(kernel)].append(kernel)
    return sorted(groups.items(), key=lambda item: -sum(kernel.times * kernel.seconds for kernel in item[1]))


def costs(kernels: Iterable[Kernel]) -> str:
    """Return launches, GB, TFLOP and milliseconds as table cells."""
    kernels = list(kernels)
    launches = sum(kernel.times * kernel.launches for kernel in kernels)
    num_bytes, operations, seconds = (
        sum(kernel.times * getattr(kernel, name) for kernel in kernels) for name in ("bytes", "operations", "seconds")
    )
    return f"{launches} | {num_bytes / 1e9:.2f} | {operations / 1e12:.2f} | {1000 * seconds:.2f}"


def short(scope: str) -> str:
    """Return the part of the network and the direction, from JAX's name of an operation."""
    direction = "gradient of " if "transpose(" in scope else ""
    names = [part.split(".")[-1].rstrip(")") for part in scope.split("/") if part]
    known = [name for name in names if name in PARTS]
    return direction + (known[0] if known else names[-1])


if __name__ == "__main__":
    main()
