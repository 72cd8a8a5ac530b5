"""Analysis of the compiled programs of inference and training for an NVIDIA GPU, on a machine without one.

    python -m benchmarks.gpu_program [--images 8 16] [--shape 800 1088]

R50-FPN in bfloat16 with 90 classes is compiled for the H100 in `h100.txtpb`; nothing is run. The interpreter
needs jax with the CUDA plugin (`pip install -e '.[cuda]'`), but no driver. Because there is no autotuning, matrix
products may use other libraries on a real GPU; the rest of the program is the same.

Milliseconds are lower bounds (`gpu_costs.py`), to rank kernels. --turns is the assumed number of iterations of loops
whose trip count depends on the data.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported, because the plugin would search for a GPU

import jax
from jax.experimental import topologies

from benchmarks.gpu_costs import GpuProgram
from benchmarks.hlo_program import Kernel, Program, grouped, part_of, total
from benchmarks.jit_cases import JitCase, inference, model_config, training

TARGET = Path(__file__).with_name("h100.txtpb")
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


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
    model = model_config(arguments.dtype)
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
        report(GpuProgram(compiled.as_text(), lambda *_: arguments.turns), compiled.memory_analysis(), arguments.top)


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
        print(f"| {loop.source} {part_of(loop.scope)} | {iterations} | {costs(loop.kernels)} |")
    print("\n| source | part | kernels | launches | GB | TFLOP | ms |\n|---|---|---|---|---|---|---|")
    places = grouped(program.kernels, lambda kernel: (kernel.source, part_of(kernel.scope), kernel.kind))
    for (source, scope, kind), kernels in places[:top]:
        print(f"| {source} | {scope} | {kind} | {costs(kernels)} |")
    arrays = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "results in donated arguments": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    print("\nMemory, GB: " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in arrays.items()))


def costs(kernels: Iterable[Kernel]) -> str:
    """Return launches, GB, TFLOP and milliseconds as table cells."""
    kernels = list(kernels)
    launches, num_bytes, operations, seconds = (
        total(kernels, field) for field in ("launches", "bytes", "operations", "seconds")
    )
    return f"{launches} | {num_bytes / 1e9:.2f} | {operations / 1e12:.2f} | {1000 * seconds:.2f}"


if __name__ == "__main__":
    main()
