"""Analysis of the compiled programs of inference and training for a TPU, on a machine without one.

    benchmarks/tpu_env.sh      # once: an environment with the TPU's compiler
    .venv-tpu/bin/python -m benchmarks.tpu_program --cache=FOLDER [--chip=v5e] [--inference 1 8] [--training 2 8] \\
        [--pmapped 4 16] [--remat] [--x101] | tee -a benchmarks/RESULTS.md
    python -m benchmarks.tpu_program --read FILE... [--chip=v5e]

R50-FPN in bfloat16 with 90 classes, or X101-FPN, is compiled for one chip; nothing is run. The training step over
several chips, --pmapped, is compiled for small images, since its collectives do not depend on them. A compilation takes
one to nine minutes; FOLDER stores the compiled text, which is used again while the lowered program is the same. The
last form needs no compiler: it reads such a text, of any program.

Milliseconds are estimates (`tpu_costs.py`), to rank kernels. Loops whose trip count depends on the boxes take as many
turns as `loop_lengths.py` has measured, which depend on the program and the number of images, in the beginning of the
file's name (`training_2`; other names: inference of one image). For other loops --turns is assumed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Before jax is imported: libtpu would otherwise look for the TPUs of the machine and their neighbors, and lock them.
os.environ.update(
    JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
)

from benchmarks import jit_cases
from benchmarks.hlo_program import Kernel, grouped, part_of, total
from benchmarks.hlo_text import size_of
from benchmarks.loop_lengths import SHAPE, measured_turns
from benchmarks.tpu_compile import compile_for, compile_pmapped
from benchmarks.tpu_costs import ASYNCHRONOUS, CHIPS, Chip, TpuProgram
from mrcnn_jax.config import presets
from mrcnn_jax.inference.devices import AXIS_NAME

LEAST, LEAST_BYTES = 0.002, 1e8  # share of the time, and bytes, of a row
SMALL = (128, 128)  # image size of the pmapped step
COLUMNS = "ms | share | GB | TFLOP"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder for compiled programs")
    parser.add_argument("--chip", choices=sorted(CHIPS), default="v5e")
    parser.add_argument("--inference", nargs="*", type=int, default=[1, 8], help="batch sizes")
    parser.add_argument("--training", nargs="*", type=int, default=[2, 8], help="images per chip")
    parser.add_argument("--pmapped", nargs="*", type=int, default=[], help="numbers of v5e chips, 4 or 16")
    parser.add_argument("--remat", action="store_true", help="the training step with train.remat")
    parser.add_argument("--x101", action="store_true", help="Detectron2's X101-FPN instead of R50-FPN")
    parser.add_argument("--read", nargs="+", type=Path, help="compiled programs (.hlo), instead of compiling")
    parser.add_argument("--turns", type=float, default=1, help="assumed iterations of unknown loops")
    parser.add_argument("--top", type=int, default=12, help="number of source lines to list")
    options = parser.parse_args()
    if not options.read and not options.cache:
        parser.error("--cache=FOLDER or --read FILE is needed")
    print(f"\n## Programs for a TPU {options.chip} (`python -m benchmarks.tpu_program`)\n")
    network = "X101-FPN with 80" if options.x101 else "R50-FPN with 90"
    print(f"{datetime.date.today()}, bfloat16, {SHAPE[0]}x{SHAPE[1]}, {network} classes.")
    for path in options.read or compiled(options):
        name = re.match(r"(inference|training)_(\d+)", path.stem)
        turns = measured_turns(*(name[1], int(name[2])) if name else ("inference", 1), options.turns)
        print(f"\n### {path.stem}\n")
        report(TpuProgram(path.read_text(), CHIPS[options.chip], turns), CHIPS[options.chip], options.top)
        facts = path.with_suffix(".json")
        if facts.exists():
            print("\n" + memory(json.loads(facts.read_text()), CHIPS[options.chip]))
    for chips in options.pmapped:
        case = jit_cases.training(jit_cases.model_config("bfloat16"), 2, SMALL, axis_name=AXIS_NAME)
        path = compile_pmapped(chips, f"step_{chips}_chips", case, options.cache)
        print(f"\n### Training step over {chips} chips\n\n" + collectives(path.read_text()))


def compiled(options: argparse.Namespace) -> Iterator[Path]:
    """Compile the programs, or take them from the cache."""
    model = jit_cases.model_config("bfloat16")
    if options.x101:
        x101 = presets.detectron2_model("mask_rcnn_X_101_32x8d_FPN")
        model = dataclasses.replace(x101, compute_dtype="bfloat16")
    suffix = "_x101" * options.x101
    for images in options.inference:
        case = jit_cases.inference(model, images, SHAPE)
        yield compile_for(options.chip, f"inference_{images}{suffix}", case, options.cache)
    for images in options.training:
        case = jit_cases.training(model, images, SHAPE, options.remat)
        yield compile_for(options.chip, f"training_{images}{suffix}{'_remat' * options.remat}", case, options.cache)


def report(program: TpuProgram, chip: Chip, top: int) -> None:
    """Print the tables of a program."""
    seconds, operations = total(program.kernels, "seconds"), total(program.kernels, "operations")
    print(
        f"{1000 * seconds:.1f} ms ({seconds * chip.clock / 1e6:.1f} million cycles); the matrix units are in use for"
        f" {operations / chip.peak / seconds:.0%} of it ({operations / 1e12:.2f} TFLOP)"
    )

    def table(title: str, key: Callable[[Kernel], tuple[str, ...]], rows: int | None = None) -> None:
        print(f"\n| {title} | {COLUMNS} |\n{'|---' * (title.count('|') + 5)}|")
        for names, kernels in grouped(program.kernels, key)[:rows]:
            if total(kernels, "seconds") > LEAST * seconds or total(kernels, "bytes") > LEAST_BYTES:
                print(f"| {' | '.join(names)} | {costs(kernels, seconds)} |")

    table("part", lambda kernel: (part_of(kernel.scope, "other"),))
    table("kind", lambda kernel: (kernel.kind,))
    table("source | part | kind", lambda kernel: (kernel.source, part_of(kernel.scope), kernel.kind), top)
    print("\n| loop | part | turns | ms per turn | ms |\n|---|---|---|---|---|")
    for loop in program.loops:
        per_turn = 1000 * total(loop.kernels, "seconds")
        turns = f"{loop.turns:g}" if loop.trip_count is not None else f"{loop.turns:g}, data"
        print(f"| {loop.source} | {part_of(loop.scope)} | {turns} | {per_turn:.3f} | {per_turn * loop.turns:.2f} |")


def costs(kernels: Iterable[Kernel], whole: float) -> str:
    """Return the cells of a row."""
    kernels = list(kernels)
    seconds, num_bytes, operations = (total(kernels, field) for field in ("seconds", "bytes", "operations"))
    return f"{1000 * seconds:.2f} | {seconds / whole:.0%} | {num_bytes / 1e9:.2f} | {operations / 1e12:.3f}"


def memory(facts: dict[str, Any], chip: Chip) -> str:
    """Return the sentence about the memory of the chip."""
    sizes = facts["memory"]
    used = sizes["arguments"] + sizes["results"] - sizes["results in donated arguments"] + sizes["temporary"]
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
    return (
        f"Memory, GB: {(used + sizes['program']) / 1e9:.2f} of {chip.memory / 1e9:.0f} ({parts}). Compiled by"
        f" {facts['compiler']} in {facts['seconds']:.0f} s."
    )


def collectives(text: str) -> str:
    """Return the table of all-reduces."""
    program = TpuProgram(text, CHIPS["v5e"], lambda *_: 1)
    kernels = [kernel for kernel in program.kernels if kernel.kind.startswith("all-reduce")]
    rows = (f"| {size_of(k.shape) / 1e6:.1f} | {'yes' if k.kind.endswith(ASYNCHRONOUS) else 'no'} |" for k in kernels)
    return "\n".join(["| all-reduce, MB | asynchronous |", "|---|---|", *rows])


if __name__ == "__main__":
    main()
