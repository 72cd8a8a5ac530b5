"""The loss on held-back images: the losses of training, with the batch norms of inference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from mrcnn_jax import losses
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.distributed import collectives
from mrcnn_jax.inference.devices import replicate, shard_over_batch
from mrcnn_jax.models.mask_rcnn import Variables, build_model
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import StatefulApply, losses_from_features

_SEED = 0  # of the sampling of anchors and RoIs, which is the same at each measurement


class Validation:
    """Computes the losses of many batches; compiles once for each shape of images, whatever the variables."""

    def __init__(self, config: ModelConfig, devices: Sequence[jax.Device], *, masks: bool, keypoints: bool):
        """`devices` take equal shares of a batch. Losses of masks or keypoints that the data lacks are left out."""
        measured = dataclasses.replace(
            config, mask=config.mask if masks else None, keypoint=config.keypoint if keypoints else None
        )
        model = build_model(config)

        def share(variables: Variables, *fields: Any) -> dict[str, losses.Loss]:
            batch = Batch(*fields)
            keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(_SEED), index))(batch.indices)
            forward = StatefulApply(model, variables, train=False)
            features = forward(model.features, batch.images, batch.image_sizes)
            parts, _ = losses_from_features(forward, measured, features, batch, keys)
            return jax.tree.map(lambda number: number[None], parts)  # one of each device

        self._devices, self._losses = devices, shard_over_batch(share, devices)

    def __call__(self, variables: Variables, batches: Iterable[Batch], check: Callable[[], None]) -> dict[str, float]:
        """`validation/loss` and its parts over all `batches` of all processes: every sum over every count.

        `check` is called before each batch, and may raise.
        """
        placed = replicate(variables, self._devices)
        totals: dict[str, list[float]] = {}
        waiting = None  # the batch before, on which the devices may still work
        for batch in batches:
            check()
            begun = self._losses(placed, *batch)
            _add(totals, waiting)
            waiting = begun
        _add(totals, waiting)
        shares = [json.loads(share) for share in collectives.gather_bytes(json.dumps(totals).encode())]
        means = {name: _mean([share[name] for share in shares]) for name in totals}
        return {"validation/loss": sum(means.values()), **{f"validation/{name}": mean for name, mean in means.items()}}


def _add(totals: dict[str, list[float]], parts: dict[str, losses.Loss] | None) -> None:
    """Add the sums and counts of all devices, in double precision."""
    for name, part in jax.device_get(parts or {}).items():
        before = totals.setdefault(name, [0.0, 0.0])
        totals[name] = [old + float(new.sum(dtype=float)) for old, new in zip(before, part, strict=True)]


def _mean(parts: Sequence[Sequence[float]]) -> float:
    total, count = (sum(column) for column in zip(*parts, strict=True))
    return total / max(count, 1.0)
