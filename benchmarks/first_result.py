"""How long the first result takes: compilation with an empty cache and with a full one; and torchvision's first result.

    python -m benchmarks.first_result [--small] [--peer-python=PYTHON]

Each number is a new process: imports, weights, inputs, compilation, one run. In between lies only JAX's cache on the
disk, in a folder of this benchmark's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.surroundings import ROOT, machine
from benchmarks.turns import Side
from benchmarks.work import Case

CASES = (Case("inference"), Case("training", 2))
SMALL = (Case("inference", 1, 128, 160), Case("training", 1, 256, 256))


class First(NamedTuple):
    """Seconds since a process was started, but for `compilation`."""

    compilation: float
    result: float


def first(command: Sequence[str], case: Case, environment: dict[str, str]) -> First:
    start = time.perf_counter()
    side = Side(command, environment)
    facts = side.ask(case._asdict())
    side.ask({})
    seconds = time.perf_counter() - start
    side.close()
    return First(facts.get("compile", 0.0), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small pictures: a dry run")
    parser.add_argument("--peer-python", default="", help="an interpreter with torch and torchvision")
    options = parser.parse_args()
    ours = [sys.executable, "-m", "benchmarks.side_ours"]
    theirs = [options.peer_python, "-m", "benchmarks.side_peer"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    print(f"## The first result (`python -m benchmarks.first_result`)\n\n{machine()}. Seconds.\n")
    print("| | compilation: cold | from the cache | first result: cold | from the cache | torchvision's |")
    print("|---|---|---|---|---|---|", flush=True)
    for case in SMALL if options.small else CASES:
        with tempfile.TemporaryDirectory() as cache:
            cached = {**environment, "JAX_COMPILATION_CACHE_DIR": cache}
            cold, warm = first(ours, case, cached), first(ours, case, cached)
        peer = f"{first(theirs, case, environment).result:.1f}" if options.peer_python else "-"
        seconds = " | ".join(f"{s:.1f}" for s in (cold.compilation, warm.compilation, cold.result, warm.result))
        print(f"| {case} | {seconds} | {peer} |", flush=True)


if __name__ == "__main__":
    main()
