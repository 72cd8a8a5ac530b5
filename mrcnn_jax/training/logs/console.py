"""Metrics on the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from mrcnn_jax.training.memory import PEAK_MEMORY

SECONDS_BETWEEN_UPLOADS = 60.0


class MetricSink:
    """A destination for metrics; each method does nothing by default."""

    def advance(self, step: int) -> None:
        """Report that `step` steps are done."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the training metrics of the steps up to `step`."""

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation after `step` steps."""

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Write images of detections after `step` steps: name -> encoded image."""

    def evaluating(self) -> AbstractContextManager[object]:
        """Return a context manager for an evaluation, which may use the terminal."""
        return nullcontext()

    def close(self) -> None:
        """Release the resources of the sink."""


class ConsoleSink(MetricSink):
    """Prints one line per report, with the time left at the current rate."""

    def __init__(self, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds = (self._steps - step) * self._batch_size / metrics["images_per_second"]
        left = timedelta(seconds=round(seconds))
        print(f"step {step}/{self._steps}  {format_metrics(metrics)}  {left} left", flush=True)

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        print(f"step {step}/{self._steps}  {format_evaluation(metrics)}", flush=True)


class ProgressSink(MetricSink):
    """A progress bar on a terminal, with the time left and the latest metrics below it.

    It is hidden during evaluations, which have a progress bar of their own.
    """

    def __init__(self, steps: int, start: int):
        from rich import get_console
        from rich.console import Group
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
        from rich.text import Text

        self._steps = steps
        columns = ("step", MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("", total=steps, completed=start)
        self._metrics = Text()
        self._console, self._display = get_console(), Group(self._progress, self._metrics)
        self._show()

    def _show(self) -> None:
        from rich.live import Live

        # A new Live each time: one that is restarted erases lines printed in between.
        self._live = Live(self._display, console=self._console, transient=True)
        self._live.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics.plain = "\n".join(_metric_lines(metrics))

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._console.print(f"step {step}/{self._steps}  {format_evaluation(metrics)}", highlight=False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self._live.stop()  # rich allows only one live display
        yield
        self._show()

    def close(self) -> None:
        self._live.transient = False  # leave the last state on the terminal
        self._live.stop()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Format the main training metrics on one line."""
    return "  ".join(_metric_lines(metrics))


def _metric_lines(metrics: Mapping[str, float]) -> tuple[str, str]:
    """Format the losses, and the other main training metrics."""
    loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else "no finite loss"
    losses = [f"{n[5:]} {v:.3f}" for n, v in metrics.items() if n.startswith("loss_")]
    if losses:
        loss += f" ({', '.join(losses)})"
    parts = [f"lr {metrics['learning_rate']:.3g}"] if "learning_rate" in metrics else []
    parts.append(f"{metrics['images_per_second']:.2f} images/s")
    parts.append(f"data wait {metrics['data_wait_fraction']:.0%}")
    if PEAK_MEMORY in metrics:
        parts.append(f"memory {metrics[PEAK_MEMORY]:.1f} GiB")
    if metrics.get("skipped"):
        parts.append(f"skipped {metrics['skipped']:.0f}")
    return loss, "  ".join(parts)


def format_evaluation(metrics: Mapping[str, float]) -> str:
    """Format the main metrics of an evaluation."""
    names = {"bbox/AP": "box AP", "segm/AP": "mask AP", "keypoints/AP": "keypoint AP"}
    names["validation/loss"] = "validation loss"
    return ", ".join(f"{name} {metrics[key]:.3f}" for key, name in names.items() if key in metrics)
