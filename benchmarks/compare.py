"""Speed and memory compared with torchvision: operators, parts of the network, inference, the training step.

    python -m benchmarks.compare --set=cpu --peer-python=PYTHON [--rows=roi_align,inference]

PYTHON is an interpreter with torch and torchvision (`benchmarks/cpu.sh` installs one); without it, torchvision is left
out. Each row is measured in new processes that alternate, A B C A B C, on the same inputs (`benchmarks.cases`), after
two warm-up runs. The third is torchvision with `torch.compile(model.backbone)`, on CPUs, where there is a backbone and
a C++ compiler. Ratio and peak memory are those of the faster torchvision.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.cases import TASKS_WITH_BACKBONE, Case
from benchmarks.environment import ROOT, describe_machine, torchvision_version
from benchmarks.interleave import Worker

WARM_UP = 2


def operators(height: int, width: int) -> list[Case]:
    pooling = [Case("roi_align", 1, height, width, size, gradient) for size in (7, 14) for gradient in (False, True)]
    others = [Case(task, 1, height, width) for task in ("matching", "top_k", "pasting")]
    return [*pooling, Case("nms", size=1000), Case("nms", size=4096), *others]


def parts(images: int, height: int, width: int) -> list[Case]:
    return [Case(task, images, height, width) for task in ("backbone", "rpn", "heads")]


def in_low_precision(cases: Sequence[Case]) -> list[Case]:
    return [case._replace(low_precision=True) for case in cases]


def inference_cases(*shapes: tuple[int, int]) -> list[Case]:
    return [Case("inference", images, *shape) for shape in shapes for images in (1, 8)]


LARGE = ((800, 1088), (800, 1344))
SETS = {
    "cpu": [
        *operators(*LARGE[0]),
        *parts(1, *LARGE[0]),
        *inference_cases(*LARGE),
        Case("training", 2),
    ],
    "gpu": [
        *operators(*LARGE[0]),
        *in_low_precision(parts(8, *LARGE[0])),
        *in_low_precision(inference_cases(*LARGE)),
        *in_low_precision([Case("training", 2), Case("training", 16)]),
    ],
    "tpu": [
        *operators(*LARGE[0]),
        *in_low_precision(parts(8, *LARGE[0])),
        *in_low_precision(inference_cases(LARGE[0])),
        *in_low_precision([Case("training", 2), Case("training", 8)]),
    ],
    "small": [*operators(128, 160), *parts(2, 128, 160), Case("inference", 2, 128, 160), Case("training", 1, 256, 256)],
}
# Large matrix products and additions, to measure the limits of the machine.
LIMITS = {
    "cpu": (Case("matrix_product", size=2048), Case("copying", size=2**26)),
    "gpu": (Case("matrix_product", size=8192, low_precision=True), Case("copying", size=2**28)),
    "tpu": (Case("matrix_product", size=8192, low_precision=True), Case("copying", size=2**28)),
    "small": (Case("matrix_product", size=256), Case("copying", size=2**16)),
}


@dataclasses.dataclass
class Measurements:
    """Measurements of one implementation."""

    seconds: list[float]
    peak: float  # MiB, maximum over the runs
    facts: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.seconds):.3f})"


def measure(
    commands: Sequence[Sequence[str]], case: Case, rounds: int, environment: dict[str, str]
) -> list[Measurements]:
    """Start a worker for each command, and run the case in them alternately."""
    workers = [Worker(command, environment) for command in commands]
    results = [Measurements([], 0.0, worker.request(case._asdict())) for worker in workers]
    for i in range(WARM_UP + rounds):
        for worker, result in zip(workers, results, strict=True):
            answer = worker.request({})
            if i >= WARM_UP:
                result.seconds.append(answer["seconds"])
                result.peak = max(result.peak, answer["peak"])
    for worker in workers:
        worker.close()
    return results


def side_commands(case: Case, torchvision_python: str, *, compiled: bool = True) -> list[list[str]]:
    """Return the command of each side: ours, torchvision and, if `compiled`, torchvision with a compiled backbone."""
    ours = [sys.executable, "-m", "benchmarks.bench_ours"]
    if not torchvision_python:
        return [ours]
    torchvision = [torchvision_python, "-m", "benchmarks.bench_torchvision"]
    if not compiled or case.task not in TASKS_WITH_BACKBONE or not shutil.which(os.environ.get("CXX", "g++")):
        return [ours, torchvision]
    return [ours, torchvision, [*torchvision, "--compile"]]


def num_rounds(case: Case, rounds: int) -> int:
    """Return fewer rounds for cases that take minutes."""
    return max(3, rounds // 2) if case.task == "training" or case.images >= 8 else rounds


@dataclasses.dataclass(frozen=True)
class Limits:
    """Measured limits of the machine."""

    flop: float  # per second
    bytes: float  # per second

    def share(self, result: Measurements) -> str:
        """Return the time at the machine's limit as a fraction of the measured time."""
        seconds = max(result.facts.get("flop", 0.0) / self.flop, result.facts.get("bytes", 0.0) / self.bytes)
        return f"{seconds / result.median:.0%}" if seconds else "-"


def measure_limits(set_name: str, rounds: int, environment: dict[str, str]) -> Limits:
    product, copying = (measure(side_commands(case, ""), case, rounds, environment)[0] for case in LIMITS[set_name])
    size = LIMITS[set_name][0].size
    return Limits(2.0 * size**3 / min(product.seconds), 8.0 * LIMITS[set_name][1].size / min(copying.seconds))


COLUMNS = (
    "",
    "ours, s",
    "torchvision, s",
    "with compiled backbone, s",
    "ratio",
    "ours, peak MiB",
    "torchvision, peak MiB",
    "of the machine's limit",
    "compiled, s",
)
HEADER = (f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|")


def table_row(case: Case, results: Sequence[Measurements], limits: Limits) -> str:
    ours, *reference = results
    compiled = ours.facts.get("compile")
    best = min(reference, key=lambda result: result.median, default=None)
    cells = [
        str(case),
        str(ours),
        *[str(result) for result in reference],
        *["-"] * (2 - len(reference)),
        f"{ours.median / best.median:.2f}" if best else "-",
        f"{ours.peak:.0f}",
        f"{best.peak:.0f}" if best else "-",
        limits.share(ours),
        f"{compiled:.1f}" if compiled is not None else "-",
    ]
    return f"| {' | '.join(cells)} |"


def describe(set_name: str, torchvision_python: str, limits: Limits) -> str:
    """Return the machine, the versions and the measured limits."""
    device = ""
    if set_name in ("gpu", "tpu"):  # in a process that ends, because only one can use a TPU
        script = "import jax; print(jax.devices()[0].device_kind)"
        device = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.strip()
    versions = f", {torchvision_version(torchvision_python)}" if torchvision_python else ""
    measured = f"{limits.flop / 1e9:.0f} GFLOP/s, {limits.bytes / 1e9:.1f} GB/s"
    return f"{describe_machine(device)}{versions}. Measured limits: {measured}. Median (minimum)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="cpu")
    parser.add_argument("--rows", default="", help="tasks, separated by commas (default: all)")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    # All processes use one device, so JAX must not preallocate three quarters of its memory.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    limits = measure_limits(options.set, options.rounds, environment)
    print(f"## Compared with torchvision (`python -m benchmarks.compare --set={options.set}`)\n")
    print("\n".join((describe(options.set, options.peer_python, limits), "", *HEADER)), flush=True)
    tasks = options.rows.split(",") if options.rows else None
    for case in SETS[options.set]:
        if tasks is None or case.task in tasks:
            # On a GPU `torch.compile` would take minutes of its time for each case.
            sides = side_commands(case, options.peer_python, compiled=options.set != "gpu")
            results = measure(sides, case, num_rounds(case, options.rounds), environment)
            print(table_row(case, results, limits), flush=True)


if __name__ == "__main__":
    main()
