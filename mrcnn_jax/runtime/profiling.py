"""A few rounds of a loop, recorded for the profile viewer of TensorBoard: `--profile` of train.py and eval.py.

Only the main process records: it alone touches the workdir, and two processes of one host would write the same file.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import tempfile
from types import TracebackType
from typing import Any

import jax
from etils import epath

from mrcnn_jax.distributed import collectives
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.compile_counter import compilations

FOLDER = "profile"  # in the workdir, or in its folder of an evaluation
ROUNDS = 5
# The viewer counts events by this name, which is TensorFlow's, as waiting for input.
WAITING = "IteratorGetNext"

logger = logging.getLogger(__name__)


class StepProfiler:
    """The rounds of a loop, unrecorded."""

    def begin(self, number: int) -> None:
        """Round `number` begins."""

    def end(self, results: Any) -> None:
        """The round that began last is over; `results` is all that the devices compute in it, and may be under way."""

    def stop(self) -> None:
        """End a recording that has begun, because something else follows. The devices have nothing left to do."""

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Profile(StepProfiler):
    """Records `ROUNDS` rounds into a folder, as soon as there was one that compiled nothing, or those that there are.

    The devices are idle when the recording begins and ends, so that it holds the work of whole rounds.
    """

    def __init__(self, folder: epath.PathLike, name: str):
        """The viewer calls each round `name` and its number."""
        self._folder, self._name = epath.Path(folder), name
        self._warm = False  # whether the round before compiled nothing
        self._compiled = 0  # programs, before this round
        self._left = ROUNDS
        self._local: tempfile.TemporaryDirectory[str] | None = None  # what is recorded, while it is
        self._round = contextlib.ExitStack()

    def begin(self, number: int) -> None:
        self._compiled = compilations().count
        if self._left == ROUNDS and self._warm:
            self._start()
        if self._local is not None:
            self._round.enter_context(jax.profiler.StepTraceAnnotation(self._name, step_num=number))

    def end(self, results: Any) -> None:
        if self._local is not None:
            self._left -= 1
            if self._left == 0:
                jax.block_until_ready(results)
            self._round.close()
            if self._left == 0:
                self.stop()
        elif self._left == ROUNDS:
            self._warm = compilations().count == self._compiled
            if self._warm:
                jax.block_until_ready(results)

    def stop(self) -> None:
        self._round.close()
        if self._local is None:
            return
        with self._local as local:
            self._local = None
            jax.profiler.stop_trace()
            self._folder.mkdir(parents=True, exist_ok=True)
            files.copy(epath.Path(local), self._folder)
        recorded, self._left = ROUNDS - self._left, 0
        logger.info(
            "%d rounds of %s are recorded in %s; to look at them: tensorboard --logdir=%s"
            " (pip install tensorboard xprof)",
            *(recorded, self._name, self._folder, shlex.quote(str(self._folder))),
        )

    def _start(self) -> None:
        self._local = tempfile.TemporaryDirectory(prefix="profile-")  # the profiler knows no stores such as gs://
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a Python function: it takes longer than what is looked for
        jax.profiler.start_trace(self._local.name, profiler_options=options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._left == ROUNDS:
            logger.info("nothing of %s was recorded: it ended before a round that compiled nothing", self._name)


def profile_steps(folder: epath.PathLike, name: str, *, recorded: bool) -> StepProfiler:
    """A loop's rounds, which the main process records into `folder` if they are to be."""
    return Profile(folder, name) if recorded and collectives.is_main() else StepProfiler()
