"""Ours and torchvision's, in turns: operators, parts of the network, inference, the training step.

    python -m benchmarks.compare --set=cpu --peer-python=PYTHON [--rows=roi_align,inference]

PYTHON is an interpreter with torch and torchvision (`benchmarks/cpu.sh` makes one); without it our side runs alone.
Each row is a pair of new processes that take turns, A B A B, on the same weights, pictures, objects and boxes
(`benchmarks.work`), after two runs that count for nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Sequence

from benchmarks.surroundings import ROOT, machine, torchvision_version
from benchmarks.turns import Side
from benchmarks.work import Case

WARM_UP = 2


def operators(height: int, width: int) -> list[Case]:
    pooling = [Case("roi_align", 1, height, width, size, gradient) for size in (7, 14) for gradient in (False, True)]
    alone = [Case(task, 1, height, width) for task in ("matching", "top_k", "pasting")]
    return [*pooling, Case("nms", size=1000), Case("nms", size=4096), *alone]


def parts(images: int, height: int, width: int) -> list[Case]:
    return [Case(task, images, height, width) for task in ("backbone", "rpn", "heads")]


def low(cases: Sequence[Case]) -> list[Case]:
    return [case._replace(low_precision=True) for case in cases]


def inferences(*shapes: tuple[int, int]) -> list[Case]:
    return [Case("inference", images, *shape) for shape in shapes for images in (1, 8)]


LARGE = ((800, 1088), (800, 1344))
SETS = {
    "cpu": [
        *operators(*LARGE[0]),
        *parts(1, *LARGE[0]),
        *inferences(*LARGE),
        Case("training", 2),
    ],
    "gpu": [
        *operators(*LARGE[0]),
        *low(parts(8, *LARGE[0])),
        *low(inferences(*LARGE)),
        *low([Case("training", 2), Case("training", 16)]),
    ],
    "small": [*operators(128, 160), *parts(2, 128, 160), Case("inference", 2, 128, 160), Case("training", 1, 256, 256)],
}
# A product and an addition that are large enough to show what the machine can do.
LIMITS = {
    "cpu": (Case("matrix_product", size=2048), Case("copying", size=2**26)),
    "gpu": (Case("matrix_product", size=8192, low_precision=True), Case("copying", size=2**28)),
    "small": (Case("matrix_product", size=256), Case("copying", size=2**16)),
}


@dataclasses.dataclass
class Runs:
    """What the runs of one side took."""

    seconds: list[float]
    peak: float  # MiB, the largest
    facts: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.seconds):.3f})"


def take_turns(commands: Sequence[Sequence[str]], case: Case, rounds: int, environment: dict[str, str]) -> list[Runs]:
    """Start the sides, let each prepare the case, and run them in turns."""
    sides = [Side(command, environment) for command in commands]
    taken = [Runs([], 0.0, side.ask(case._asdict())) for side in sides]
    for turn in range(WARM_UP + rounds):
        for side, runs in zip(sides, taken, strict=True):
            answer = side.ask({})
            if turn >= WARM_UP:
                runs.seconds.append(answer["seconds"])
                runs.peak = max(runs.peak, answer["peak"])
    for side in sides:
        side.close()
    return taken


def rounds_of(case: Case, wanted: int) -> int:
    """Fewer rounds of what takes minutes."""
    return max(3, wanted // 2) if case.task == "training" or case.images >= 8 else wanted


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine can do, measured."""

    flop: float  # a second
    bytes: float

    def share(self, runs: Runs) -> str:
        """How much of the time the work would take at the machine's limit."""
        seconds = max(runs.facts.get("flop", 0.0) / self.flop, runs.facts.get("bytes", 0.0) / self.bytes)
        return f"{seconds / runs.median:.0%}" if seconds else "-"


def measured_limits(which: str, ours: Sequence[str], rounds: int, environment: dict[str, str]) -> Limits:
    product, copying = (take_turns([ours], case, rounds, environment)[0] for case in LIMITS[which])
    size = LIMITS[which][0].size
    return Limits(2.0 * size**3 / min(product.seconds), 8.0 * LIMITS[which][1].size / min(copying.seconds))


COLUMNS = (
    "",
    "ours, s",
    "torchvision, s",
    "ratio",
    "ours, peak MiB",
    "torchvision, peak MiB",
    "of the machine's limit",
    "compiled, s",
)
HEADER = (f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|")


def row(case: Case, taken: Sequence[Runs], limits: Limits) -> str:
    ours, *theirs = taken
    compiled = ours.facts.get("compile")
    cells = [
        str(case),
        str(ours),
        *([str(theirs[0]), f"{ours.median / theirs[0].median:.2f}"] if theirs else ["-", "-"]),
        f"{ours.peak:.0f}",
        f"{theirs[0].peak:.0f}" if theirs else "-",
        limits.share(ours),
        f"{compiled:.1f}" if compiled is not None else "-",
    ]
    return f"| {' | '.join(cells)} |"


def described(which: str, peer: str, limits: Limits) -> str:
    """The machine, the versions, and what they can do."""
    device = ""
    if which == "gpu":
        import jax  # here: a process that has it takes memory of the device

        device = jax.devices()[0].device_kind
    theirs = f", {torchvision_version(peer)}" if peer else ""
    can = f"{limits.flop / 1e9:.0f} GFLOP/s, {limits.bytes / 1e9:.1f} GB/s"
    return f"{machine(device)}{theirs}. Measured limits: {can}. Median (minimum)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="cpu")
    parser.add_argument("--rows", default="", help="only these tasks, separated by commas")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    commands = [[sys.executable, "-m", "benchmarks.side_ours"]]
    if options.peer_python:
        commands.append([options.peer_python, "-m", "benchmarks.side_peer"])
    # Both sides have memory on one device: ours is not to take three quarters of it beforehand.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    limits = measured_limits(options.set, commands[0], options.rounds, environment)
    print(f"## Beside torchvision (`python -m benchmarks.compare --set={options.set}`)\n")
    print("\n".join((described(options.set, options.peer_python, limits), "", *HEADER)), flush=True)
    wanted = options.rows.split(",") if options.rows else None
    for case in SETS[options.set]:
        if wanted is None or case.task in wanted:
            taken = take_turns(commands, case, rounds_of(case, options.rounds), environment)
            print(row(case, taken, limits), flush=True)


if __name__ == "__main__":
    main()
