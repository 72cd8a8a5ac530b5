"""Where the time of one image goes: the loader's own functions, each with a clock around it, in one thread."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import cv2

from mrcnn_jax.config import Config
from mrcnn_jax.data import image_files, load_split, loader, pipeline, records, sample
from mrcnn_jax.data.augment import geometry, random_choices
from mrcnn_jax.data.batching import BatchPlan

# The function is looked up there, and its time without that of those inside it counts as this.
STAGES: dict[str, list[tuple[Any, str]]] = {
    "reading records": [(records.RecordReader, "__getitem__")],
    "parsing annotations": [(json, "loads"), (loader, "make_sample")],
    "decoding": [(image_files, "decode")],
    "color conversion": [(cv2, "cvtColor")],
    "flipping": [(cv2, "flip")],
    "resizing": [(geometry, "resample")],
    "mask crops": [(sample, "crop_masks")],
    "drawing and moving": [(random_choices, "draw"), (random_choices, "apply"), (loader, "write")],
    "empty batches": [(loader.Loader, "_empty")],
}


class Clock:
    """CPU seconds of each stage, counted where they are spent: a stage inside another is not the other's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stages = ["the rest"]
        self._last = time.process_time()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted as `stage`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self._switch()
            self._stages.append(stage)
            try:
                return function(*arguments, **named)
            finally:
                self._switch()
                self._stages.pop()

        return timed

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._stages[-1]] += now - self._last
        self._last = now


def shares(config: Config, rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds of CPU time an image for each stage, and for an image without any clock: least of the rounds."""
    dataset = load_split(config.data, "train")
    assignment = pipeline._assign_buckets(dataset, config, max(config.data.shortest_edge_train))
    size = config.train.batch_size
    plan = BatchPlan(config.train.seed, assignment, config.data.buckets, size)
    batches = loader.Loader(dataset, config, plan, slice(0, size), training=True)
    cv2.setNumThreads(1)
    steps = range(plan.batches_per_epoch)
    images = 1e-3 * size * len(steps)
    best: dict[str, float] = {}
    whole = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for step in steps:
            batches(step)
        whole = min(whole, (time.process_time() - start) / images)
        with _clocked() as clock:
            for step in steps:
                batches(step)
        if not best or sum(clock.seconds.values()) < sum(best.values()):
            best = dict(clock.seconds)
    return {stage: seconds / images for stage, seconds in best.items()}, whole


@contextlib.contextmanager
def _clocked() -> Iterator[Clock]:
    """The loader's functions replaced by clocked ones."""
    with contextlib.ExitStack() as stack:
        clock = Clock()
        for stage, places in STAGES.items():
            for owner, name in places:
                timed = clock.wrap(stage, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        yield clock
        clock._switch()
