"""Profiles of a few steps of a loop for TensorBoard: `--profile` of `mrcnn train` and `mrcnn eval`.

Only process 0 records, because two processes on one host would write the same file.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from typing import Any

import jax
from etils import epath

from mrcnn_jax.distributed import collectives
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.compile_counter import get_counter

FOLDER = "profile"  # in the work directory, or in its evaluation folder
NUM_STEPS = 5
# Event name of waiting for input. It is TensorFlow's, which the profile viewer counts as input time.
INPUT_EVENT = "IteratorGetNext"

logger = logging.getLogger(__name__)


class StepProfiler:
    """Records up to `NUM_STEPS` steps of a loop into a folder, after the first step without a compilation.

    The devices are idle when the recording begins and ends, so that it contains the work of whole steps.
    """

    def __init__(self, folder: epath.PathLike | None = None, name: str = ""):
        """`name` and its number label each step in the viewer. Without a folder, nothing is recorded."""
        self._folder, self._name = epath.Path(folder or ""), name
        self._warm = False  # whether the previous step compiled nothing
        self._compiled = 0  # number of compilations before this step
        self._remaining = NUM_STEPS if folder else 0
        self._local: tempfile.TemporaryDirectory[str] | None = None  # local copy of a recording in progress
        self._step = contextlib.ExitStack()

    def begin(self, number: int) -> None:
        """Begin step `number`."""
        self._compiled = get_counter().count
        if self._remaining == NUM_STEPS and self._warm:
            self._start()
        if self._local is not None:
            self._step.enter_context(jax.profiler.StepTraceAnnotation(self._name, step_num=number))

    def end(self, results: Any) -> None:
        """End the step. `results` contains all its device arrays, which may still be computed."""
        if self._local is not None:
            self._remaining -= 1
            if self._remaining == 0:
                jax.block_until_ready(results)
            self._step.close()
            if self._remaining == 0:
                self.stop()
        elif self._remaining == NUM_STEPS:
            self._warm = get_counter().count == self._compiled
            if self._warm:
                jax.block_until_ready(results)

    def stop(self) -> None:
        """Finish a recording in progress, before other work. The devices must be idle."""
        self._step.close()
        if self._local is None:
            return
        with self._local as local:
            self._local = None
            jax.profiler.stop_trace()
            self._folder.mkdir(parents=True, exist_ok=True)
            files.copy_folder(epath.Path(local), self._folder)
        recorded, self._remaining = NUM_STEPS - self._remaining, 0
        logger.info(
            "wrote a profile of %d steps of %s to %s; view it with: tensorboard --logdir=%s"
            " (pip install tensorboard xprof)",
            *(recorded, self._name, self._folder, shlex.quote(str(self._folder))),
        )

    def _start(self) -> None:
        self._local = tempfile.TemporaryDirectory(prefix="profile-")  # the profiler cannot write to gs://
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing Python calls would take longer than the step
        jax.profiler.start_trace(self._local.name, profiler_options=options)

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._remaining == NUM_STEPS:
            logger.info("no profile of %s: it ended before a step without a compilation", self._name)


def profile_steps(folder: epath.PathLike, name: str, *, recorded: bool) -> StepProfiler:
    """Return the profiler of a loop, which writes to `folder` on process 0 if `recorded`."""
    return StepProfiler(folder if recorded and collectives.is_main() else None, name)
