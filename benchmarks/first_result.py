"""Time to the first result, with a cold and a warm compilation cache, compared with torchvision.

    python -m benchmarks.first_result [--small] [--peer-python=PYTHON]

Each number is measured in a new process: imports, weights, inputs, compilation, one run. JAX's compilation cache is in
a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.environment import ROOT, describe_machine
from benchmarks.interleave import Worker

CASES = (Case("inference"), Case("training", 2))
SMALL = (Case("inference", 1, 128, 160), Case("training", 1, 256, 256))


class FirstResult(NamedTuple):
    """Seconds of the first run in a new process."""

    compilation: float
    result: float  # since the start of the process


def measure(command: Sequence[str], case: Case, environment: dict[str, str]) -> FirstResult:
    start = time.perf_counter()
    worker = Worker(command, environment)
    facts = worker.request(case._asdict())
    worker.request({})
    seconds = time.perf_counter() - start
    worker.close()
    return FirstResult(facts.get("compile", 0.0), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small images, for a dry run")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch and torchvision")
    options = parser.parse_args()
    ours = [sys.executable, "-m", "benchmarks.bench_ours"]
    reference = [options.peer_python, "-m", "benchmarks.bench_torchvision"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    print(f"## First result (`python -m benchmarks.first_result`)\n\n{describe_machine()}. Seconds.\n")
    print("| | compilation: cold | from the cache | first result: cold | from the cache | torchvision |")
    print("|---|---|---|---|---|---|", flush=True)
    for case in SMALL if options.small else CASES:
        with tempfile.TemporaryDirectory() as cache:
            cached = {**environment, "JAX_COMPILATION_CACHE_DIR": cache}
            cold, warm = measure(ours, case, cached), measure(ours, case, cached)
        torchvision = f"{measure(reference, case, environment).result:.1f}" if options.peer_python else "-"
        seconds = " | ".join(f"{s:.1f}" for s in (cold.compilation, warm.compilation, cold.result, warm.result))
        print(f"| {case} | {seconds} | {torchvision} |", flush=True)


if __name__ == "__main__":
    main()
