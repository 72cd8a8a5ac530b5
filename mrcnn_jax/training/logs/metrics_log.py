"""Training metrics: averaged over steps and written to the sinks of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from etils import epath

from mrcnn_jax.training.logs.console import ConsoleSink, MetricSink, ProgressSink
from mrcnn_jax.training.logs.json_lines import JsonLinesSink
from mrcnn_jax.training.logs.tensorboard import open_sink

LATEST = {"learning_rate", "skipped"}  # metrics whose latest value is reported; of all others, the mean


class MetricsLog:
    """Collects the metrics of each step and writes their means to the sinks every `every` steps.

    Adds `images_per_second` and `data_wait_fraction`, the fraction of time spent waiting for batches. Both exclude
    compilations and evaluations. `gauges` returns metrics that are read at each report, such as memory.
    """

    def __init__(
        self,
        sinks: list[MetricSink],
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
        self._steps, self._waited, self._excluded, self._start = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def exclude(self, seconds: float) -> None:
        """Exclude `seconds` (of compilation) from the rates."""
        self._excluded += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a training step, after which `step` steps are done."""
        self._steps += 1
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(float(value))
        for sink in self._sinks:
            sink.advance(step)
        if step % self._every == 0 or step == self._last_step:
            self._flush(step, metrics)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Exclude the time in this context, spent on an evaluation, from the rates."""
        start = time.perf_counter()
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink.evaluating())
            yield
        self.exclude(time.perf_counter() - start)

    def write_evaluation(self, step: int, metrics: Mapping[str, float], images: Mapping[str, bytes]) -> None:
        """Write the metrics of an evaluation after `step` steps, and images of its detections."""
        for sink in self._sinks:
            sink.write_evaluation(step, metrics)
            sink.write_images(step, images)

    def _flush(self, step: int, metrics: Mapping[str, float]) -> None:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        for name in LATEST.intersection(metrics):
            means[name] = float(metrics[name])
        seconds = max(time.perf_counter() - self._start - self._excluded, 1e-9)
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


def default_sinks(workdir: epath.PathLike, *, steps: int, start: int, batch_size: int) -> list[MetricSink]:
    """Return sinks for metrics.jsonl, TensorBoard, and a progress bar on a terminal, else plain lines."""
    sinks: list[MetricSink] = [JsonLinesSink(workdir, start), open_sink(workdir, start)]
    return [*sinks, ProgressSink(steps, start) if sys.stdout.isatty() else ConsoleSink(steps, batch_size)]
