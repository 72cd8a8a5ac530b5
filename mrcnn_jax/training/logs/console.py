"""What a run says while it trains: lines or a progress display, and metrics.jsonl. See also `training.tensorboard`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from etils import epath

from mrcnn_jax.runtime import files
from mrcnn_jax.training.memory import MEMORY

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_UPLOADS = 60.0
INSTALL = "pip install -e '.[viz]'"


class Sink:
    """A place where metrics go; each takes of them what it can show."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the steps up to `step`."""

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record what was measured on held-back images after `step` steps."""

    def write_images(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """Record pictures of what was found then: by name, encoded."""

    def measuring(self) -> AbstractContextManager[object]:
        """What happens within has the terminal to itself."""
        return nullcontext()

    def close(self) -> None:
        """Nothing more will come."""


class Lines(Sink):
    """One plain line for each report, with the time that is left at the rate of this report."""

    def __init__(self, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds = (self._steps - step) * self._batch_size / metrics["images_per_second"]
        left = timedelta(seconds=round(seconds))
        print(f"step {step}/{self._steps}  {describe(metrics)}  {left} left", flush=True)

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        print(f"step {step}/{self._steps}  {describe_measured(metrics)}", flush=True)


class ProgressDisplay(Sink):
    """A bar with the time that is left and, below it, the latest metrics; for a terminal.

    While something is measured, which has a bar of its own, it is gone.
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
        self._console, self._shown = get_console(), Group(self._progress, self._metrics)
        self._show()

    def _show(self) -> None:
        from rich.live import Live

        # A new one each time: a Live that is started again wipes lines that others wrote meanwhile.
        self._live = Live(self._shown, console=self._console, transient=True)
        self._live.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics.plain = "\n".join(_describe(metrics))

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        self._console.print(f"step {step}/{self._steps}  {describe_measured(metrics)}", highlight=False)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self._live.stop()  # there can only be one display, and an evaluation has its own
        yield
        self._show()

    def close(self) -> None:
        self._live.transient = False  # the last state stays
        self._live.stop()


class JsonLines(Sink):
    """One JSON object a line in workdir/metrics.jsonl; lines that a resumed run will write again are dropped.

    Objects of a remote store (gs://) cannot grow: there the whole file is written again, at most once a minute.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        self._path = epath.Path(workdir) / METRICS
        kept = []
        if self._path.is_file():
            content = self._path.read_bytes().decode(errors="replace")  # a power failure leaves any bytes at the end
            kept = [line + "\n" for line in content.splitlines() if _step_of(line) <= start]
            files.write_text(self._path, "".join(kept))
        self._lines, self._written = kept, time.monotonic()
        self._file = None if files.is_remote(self._path) else self._path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **metrics}) + "\n"
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._written > SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self._upload()

    def _upload(self) -> None:
        files.write_text(self._path, "".join(self._lines))
        self._written = time.monotonic()


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics that a person follows, on one line."""
    return "  ".join(_describe(metrics))


def _describe(metrics: Mapping[str, float]) -> tuple[str, str]:
    """The losses, and the rest of what a person follows."""
    loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else "no finite loss"
    losses = [f"{n[5:]} {v:.3f}" for n, v in metrics.items() if n.startswith("loss_")]
    if losses:
        loss += f" ({', '.join(losses)})"
    parts = [f"lr {metrics['learning_rate']:.3g}"] if "learning_rate" in metrics else []
    parts.append(f"{metrics['images_per_second']:.2f} images/s")
    parts.append(f"data wait {metrics['data_wait_fraction']:.0%}")
    if MEMORY in metrics:
        parts.append(f"memory {metrics[MEMORY]:.1f} GiB")
    if metrics.get("skipped"):
        parts.append(f"skipped {metrics['skipped']:.0f}")
    return loss, "  ".join(parts)


def describe_measured(metrics: Mapping[str, float]) -> str:
    """The measurements on held-back images that a person follows, in a few words."""
    names = {"bbox/AP": "box AP", "segm/AP": "mask AP", "keypoints/AP": "keypoint AP"}
    names["validation/loss"] = "validation loss"
    return ", ".join(f"{name} {metrics[key]:.3f}" for key, name in names.items() if key in metrics)


def _step_of(line: str) -> Any:
    """The step of a line; beyond all steps for the torn last line of a killed run."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
