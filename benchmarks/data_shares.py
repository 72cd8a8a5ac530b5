"""CPU time of the stages of the loader, measured around its functions in one thread."""

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

# (owner, name) of the functions of each stage. Functions of other stages that they call are excluded.
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


class StageClock:
    """CPU seconds of each stage, without those of stages inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stages = ["other"]
        self._last = time.process_time()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted as `stage`."""

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


def stage_milliseconds(config: Config, rounds: int) -> tuple[dict[str, float], float]:
    """Return CPU milliseconds per image, minimum over the rounds: of each stage, and in total without clocks."""
    dataset = load_split(config.data, "train")
    assignment = pipeline._assign_buckets(dataset, config, max(config.data.shortest_edge_train))
    size = config.train.batch_size
    plan = BatchPlan(config.train.seed, assignment, config.data.buckets, size)
    batches = loader.Loader(dataset, config, plan, slice(0, size), training=True)
    cv2.setNumThreads(1)
    steps = range(plan.batches_per_epoch)
    images = 1e-3 * size * len(steps)
    best: dict[str, float] = {}
    total = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for step in steps:
            batches(step)
        total = min(total, (time.process_time() - start) / images)
        with _timed_stages() as clock:
            for step in steps:
                batches(step)
        if not best or sum(clock.seconds.values()) < sum(best.values()):
            best = dict(clock.seconds)
    return {stage: seconds / images for stage, seconds in best.items()}, total


@contextlib.contextmanager
def _timed_stages() -> Iterator[StageClock]:
    """Replace the functions of all stages by timed ones."""
    with contextlib.ExitStack() as stack:
        clock = StageClock()
        for stage, functions in STAGES.items():
            for owner, name in functions:
                timed = clock.wrap(stage, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        yield clock
        clock._switch()
