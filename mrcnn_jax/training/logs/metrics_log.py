"""The metrics of a run's steps: gathered, averaged, handed to whoever shows or keeps them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from etils import epath

from mrcnn_jax.training.logs.console import INSTALL, JsonLines, Lines, ProgressDisplay, Sink
from mrcnn_jax.training.logs.tensorboard import TensorBoard

LATEST = {"learning_rate", "skipped"}  # reported as they are now; of everything else the mean


class MetricsLog:
    """Gathers the metrics of every step and hands their means to the sinks every `every` steps.

    Adds `images_per_second` and `data_wait_fraction`, the part of the time that was spent waiting for batches. The
    time of compilation counts in neither. `gauges` gives what is only known when asked for: memory.
    """

    def __init__(
        self,
        sinks: list[Sink],
        *,
        every: int,
        last_step: int,
        batch_size: int,
        gauges: Callable[[], Mapping[str, float]] = dict,
    ):
        self._sinks, self._every, self._last_step, self._batch_size = sinks, every, last_step, batch_size
        self._gauges = gauges
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._steps, self._waited, self._excluded, self._since = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def exclude(self, seconds: float) -> None:
        """Leave `seconds` (of compilation) out of the rates."""
        self._excluded += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the training step after which `step` steps are done."""
        self._steps += 1
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(float(value))
        for sink in self._sinks:
            sink.advance(step)
        if step % self._every == 0 or step == self._last_step:
            self._flush(step, metrics)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time inside is spent on held-back images, and left out of the rates."""
        start = time.perf_counter()
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink.measuring())
            yield
        self.exclude(time.perf_counter() - start)

    def write_scalars(self, step: int, metrics: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
        """What was measured on held-back images after `step` steps, and pictures of what was found in some of them."""
        for sink in self._sinks:
            sink.write_scalars(step, metrics)
            sink.write_images(step, pictures)

    def _flush(self, step: int, metrics: Mapping[str, float]) -> None:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        for name in LATEST.intersection(metrics):
            means[name] = float(metrics[name])
        seconds = max(time.perf_counter() - self._since - self._excluded, 1e-9)
        means["images_per_second"] = self._steps * self._batch_size / seconds
        means["data_wait_fraction"] = min(self._waited / seconds, 1.0)
        means |= self._gauges()
        for sink in self._sinks:
            sink.write(step, means)
        self._reset()

    def __enter__(self) -> MetricsLog:
        self._reset()
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()


def default_sinks(workdir: epath.PathLike, *, steps: int, start: int, batch_size: int) -> list[Sink]:
    """A display on a terminal or plain lines, metrics.jsonl, TensorBoard; says what is missing for which."""
    sinks: list[Sink] = [JsonLines(workdir, start)]
    try:
        sinks.append(TensorBoard(workdir, start))
    except ImportError:
        print(f"no TensorBoard files: tensorboardX is not installed ({INSTALL})", flush=True)
    except Exception as error:
        print(f"no TensorBoard files: {error}", flush=True)
    if not sys.stdout.isatty():
        return [*sinks, Lines(steps, batch_size)]
    try:
        return [*sinks, ProgressDisplay(steps, start)]
    except ImportError:
        print(f"no progress display: rich is not installed ({INSTALL})", flush=True)
        return [*sinks, Lines(steps, batch_size)]
