"""Kill a training run with SIGKILL repeatedly and check that it ends exactly as an uninterrupted one.

    cd tests; python -m support.chaos --kills=20 [--seed=0] [--keep=FOLDER] [--linear]

Trains the tiny recipe once without interruption. Then trains it again, kills the process at random moments, half of
them during a save, and restarts it with the same command, until it has been killed often enough; a run that finishes
before that is followed by another. Then compares every array of the last and the best checkpoint, the losses of all
steps and all evaluations. `--linear` replaces gradients and detection by those of a linear model, which compile at
once. Exit status 0 if they are equal. The moments are drawn from the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mrcnn_jax.config import Config
from support import tiny
from support.launch import LINEAR_GRADIENTS, Job, launch, write_recipe

STEPS, SAVE_EVERY, EVALUATE_EVERY = 20, 2, 7
TIME_OUT = 300.0  # seconds that a process may take; a tenth of it on an idle machine
TEMPORARY = "*orbax-checkpoint-tmp*"
KINDS = ("in a save", "in start-up", "in compilation or the first step", "in an evaluation", "in a step")
MACHINE = ("images_per_second", "data_wait_fraction", "peak_memory_gib")  # metrics of the machine, not of the run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--linear", action="store_true", help="a linear model in place of the network")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="an empty folder in which the runs are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        chaos = Chaos(folder, arguments.kills, random.Random(arguments.seed), arguments.linear)
        chaos.run_uninterrupted()
        while chaos.needs_more_kills():
            chaos.run_and_kill()
        chaos.report()
        return 1 if chaos.differences else 0


def recipe(folder: Path, linear: bool) -> Config:
    """The tiny recipe with more steps and every kind of output file."""
    config = tiny.config(tiny.model(), folder)
    train = dataclasses.replace(
        config.train,
        steps=STEPS,
        checkpoint_every=SAVE_EVERY,
        ema_decay=0.9,
        evaluate_every=EVALUATE_EVERY,
        validate_every=0 if linear else EVALUATE_EVERY,
        best_metric="bbox/AP" if linear else "validation/loss",
    )
    return dataclasses.replace(config, train=train)


class Chaos:
    """The uninterrupted run, the killed runs, and their statistics."""

    def __init__(self, folder: Path, kills: int, moments: random.Random, linear: bool):
        self.folder, self.kills, self.moments = folder, kills, moments
        self.prelude = LINEAR_GRADIENTS if linear else ""
        self.recipe = write_recipe(recipe(folder, linear), folder / "recipe.py")
        self.whole = folder / "whole"
        self.counts: Counter[str] = Counter()
        self.resumed: Counter[int] = Counter()  # from which step, how often
        self.differences: list[str] = []
        self.runs = self.started = 0

    def needs_more_kills(self) -> bool:
        """Return whether more kills are needed, in total or during saves."""
        return self.counts.total() < self.kills or 2 * self.counts[KINDS[0]] < self.kills

    def run_uninterrupted(self) -> None:
        """Run without interruption, to fill the compilation cache and to measure times."""
        begin = time.monotonic()
        with self._start(self.whole) as job:
            job.wait_for(f": step 0 of {STEPS}", timeout=TIME_OUT)
            self.start_up = time.monotonic() - begin
            job.wait_for(f"step {SAVE_EVERY}/", timeout=TIME_OUT)
            begin = time.monotonic()
            job.succeed(timeout=TIME_OUT)
        self.step = (time.monotonic() - begin) / STEPS  # including saves and evaluations
        self.save = min(self.step, 1.0)

    def run_and_kill(self) -> None:
        """Start a run, kill it until it finishes or there are enough kills, and compare the result."""
        workdir, self.runs = self.folder / f"killed{self.runs}", self.runs + 1
        before = -1
        while True:
            with self._start(workdir) as job:
                # Saves are short and hard to hit: kill during saves while fewer than half of the kills were.
                missing = 2 * self.counts[KINDS[0]] < min(self.counts.total() + 1, self.kills)
                if self.needs_more_kills():
                    (self._wait_for_save if missing else self._wait)(job, workdir)
                    job.kill()
                [code] = job.wait(timeout=TIME_OUT)
                output = job.output()
            before = self._check_resumption(output, before)
            if code == -signal.SIGKILL:
                self.counts[self._kind(workdir, output)] += 1
                print(f"kill {self.counts.total()}: {self._kind(workdir, output)}", flush=True)
            elif code == 0:
                self.differences += [f"{workdir.name}: {difference}" for difference in differences(self.whole, workdir)]
                return
            else:
                self.differences.append(f"{workdir}: exit code {code}\n{output}")
                self.kills = 0
                return

    def _start(self, workdir: Path) -> Job:
        self.started += 1
        self.begin = time.time()
        return launch(
            ["train.py", f"--config={self.recipe}", f"--workdir={workdir}"],
            self.folder / "output" / str(self.started),
            devices=2,
            prelude=self.prelude,
            environment={"JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla")},  # a kill may damage this, too
        )

    def _wait(self, job: Job, workdir: Path) -> None:
        """Wait until a random moment of the start-up or of the steps after it."""
        if self.moments.random() < 0.3:
            _wait_until(lambda: False, job, self.moments.uniform(0, 1.5 * self.start_up))
        else:
            _wait_until(lambda: re.search(r"step \d+/", job.output()) is not None, job, TIME_OUT)
            _wait_until(lambda: False, job, self.moments.uniform(0, 8 * self.step))

    def _wait_for_save(self, job: Job, workdir: Path) -> None:
        """Wait until a random moment of one of the next three saves."""
        for _ in range(self.moments.randint(1, 3)):
            _wait_until(lambda: not self._being_saved(workdir), job, TIME_OUT)
            _wait_until(lambda: self._being_saved(workdir), job, TIME_OUT)
        begin = time.monotonic()
        moment = self.moments.uniform(0, self.save)
        _wait_until(lambda: not self._being_saved(workdir), job, moment)
        if self._being_saved(workdir):
            return
        # The save was faster: use its duration next time, and kill at the start of the following save.
        self.save = (self.save + time.monotonic() - begin) / 2
        _wait_until(lambda: self._being_saved(workdir), job, TIME_OUT)

    def _kind(self, workdir: Path, output: str) -> str:
        """Return what the process was doing when it was killed, from its output and files."""
        if self._being_saved(workdir):
            return KINDS[0]
        if re.search(r": step \d+ of", output) is None:
            return KINDS[1]
        steps = re.findall(r"^step (\d+)/", output, re.MULTILINE)
        if not steps:
            return KINDS[2]
        measured = {row["step"] for row in _rows(workdir / "evaluations.jsonl")}
        due = int(steps[-1]) % EVALUATE_EVERY == 0 or int(steps[-1]) == STEPS
        return KINDS[3] if due and int(steps[-1]) not in measured else KINDS[4]

    def _being_saved(self, workdir: Path) -> bool:
        """Return whether there is an incomplete checkpoint of this process, not of an earlier one."""
        for folder in ("checkpoints", "best"):
            for path in (workdir / folder).glob(TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime > self.begin:
                        return True
        return False

    def _check_resumption(self, output: str, before: int) -> int:
        """Count the step that a process resumed at; it must not decrease."""
        begun = re.search(r": step (\d+) of", output)
        if begun is None:
            return before
        step = int(begun[1])
        self.resumed[step] += 1
        if step < before:
            self.differences.append(f"resumed at step {step} after step {before}")
        return step

    def report(self) -> None:
        kills = self.counts.total()
        print(f"{kills} kills in {self.runs} runs of {STEPS} steps, a checkpoint after every {SAVE_EVERY} steps:")
        print("\n".join(f"  {self.counts[kind]:3d} {kind}" for kind in KINDS))
        print("resumed at step: " + ", ".join(f"{step} ({n} x)" for step, n in sorted(self.resumed.items())))
        print("\n".join(self.differences) or "every run ended exactly as the uninterrupted one")


def differences(first: Path, second: Path) -> list[str]:
    """Return the differences between two finished runs."""
    found = []
    for folder in ("checkpoints", "best"):
        steps = [sorted(path.name for path in (workdir / folder).iterdir()) for workdir in (first, second)]
        if steps[0][-1] != steps[1][-1] or (folder == "best" and steps[0] != steps[1]):
            found.append(f"{folder}: {steps[0]}, {steps[1]}")
            continue
        arrays = [_arrays(workdir / folder / steps[0][-1]) for workdir in (first, second)]
        names = [name for name in {**arrays[0], **arrays[1]} if arrays[0].get(name) != arrays[1].get(name)]
        found += [f"{folder}: {name}" for name in names]
    losses = [[_losses(row) for row in _rows(workdir / "metrics.jsonl")] for workdir in (first, second)]
    if [row["step"] for row in losses[1]] != list(range(1, STEPS + 1)):
        found.append(f"metrics.jsonl: steps {[row['step'] for row in losses[1]]}")
    found += [f"metrics.jsonl: {a}, {b}" for a, b in zip(*losses, strict=False) if a != b]
    measured = [_rows(workdir / "evaluations.jsonl") for workdir in (first, second)]
    if measured[0] != measured[1]:
        found.append(f"evaluations.jsonl: {measured[0]}, {measured[1]}")
    return found


def _arrays(folder: Path) -> dict[str, bytes]:
    """Read the arrays of a checkpoint, verifying checksums: name -> dtype, shape and bytes."""
    import jax
    from etils import epath

    from mrcnn_jax.checkpoints.storage import read_checksums, read_item

    arrays = {}
    for item, recorded in read_checksums(epath.Path(folder)).items():
        leaves, _ = jax.tree.flatten_with_path(read_item(epath.Path(folder), item, recorded))
        for path, leaf in leaves:
            arrays[item + jax.tree_util.keystr(path)] = f"{leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes()
    assert arrays
    return arrays


def _losses(row: dict[str, float]) -> dict[str, float]:
    """Return a row without the metrics of the machine."""
    return {name: value for name, value in row.items() if name not in MACHINE}


def _rows(path: Path) -> list[dict[str, float]]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be incomplete


def _wait_until(condition, job: Job, seconds: float) -> None:
    """Wait until `condition`, the end of the process, or a timeout."""
    end = time.monotonic() + seconds
    while job.processes[0].poll() is None and time.monotonic() < end and not condition():
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main())
