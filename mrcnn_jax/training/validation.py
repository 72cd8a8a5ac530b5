"""The validation loss: the training losses on the evaluation dataset, with batch norm in inference mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.distributed import collectives
from mrcnn_jax.inference.devices import replicate, shard_over_batch
from mrcnn_jax.models.mask_rcnn import Variables, build_model
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import LossDict, StatefulApply, two_stage_losses

_SEED = 0  # for sampling anchors and RoIs: the same at each evaluation


class ValidationLoss:
    """Computes the losses over a dataset. Compiled once per image shape, for any variables."""

    def __init__(self, config: ModelConfig, devices: Sequence[jax.Device], *, masks: bool, keypoints: bool):
        """Shard batches over `devices`. `masks` and `keypoints`: whether the dataset has them, else no such loss."""
        loss_config = dataclasses.replace(
            config, mask=config.mask if masks else None, keypoint=config.keypoint if keypoints else None
        )
        model = build_model(loss_config)

        def compute_losses(variables: Variables, *fields: Any) -> LossDict:
            batch = Batch(*fields)
            keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(_SEED), index))(batch.indices)
            loss_dict, _ = two_stage_losses(StatefulApply(model, variables, train=False), batch, keys)
            return jax.tree.map(lambda number: number[None], loss_dict)  # the first axis is that of the devices

        self._devices, self._compute_losses = devices, shard_over_batch(compute_losses, devices)

    def __call__(self, variables: Variables, batches: Iterable[Batch], check: Callable[[], None]) -> dict[str, float]:
        """Return `validation/loss` and its parts, over the `batches` of all processes: each sum over its count.

        `check` is called before each batch, and may raise.
        """
        replicated = replicate(variables, self._devices)
        totals: dict[str, list[float]] = {}
        pending = None  # losses of the previous batch, which the devices may still be computing
        for batch in batches:
            check()
            started = self._compute_losses(replicated, *batch)
            _add(totals, pending)
            pending = started
        _add(totals, pending)
        gathered = collectives.gather(totals)
        means = collectives.run_on_main(lambda: {name: _mean([part[name] for part in gathered]) for name in totals})
        return {"validation/loss": sum(means.values()), **{f"validation/{name}": mean for name, mean in means.items()}}


def _add(totals: dict[str, list[float]], loss_dict: LossDict | None) -> None:
    """Add the sums and counts of all devices to `totals`, in double precision."""
    for name, loss in jax.device_get(loss_dict or {}).items():
        before = totals.setdefault(name, [0.0, 0.0])
        totals[name] = [old + float(new.sum(dtype=float)) for old, new in zip(before, loss, strict=True)]


def _mean(parts: Sequence[Sequence[float]]) -> float:
    """Return the sum over the count of (sum, count) pairs of all processes."""
    total, count = (sum(column) for column in zip(*parts, strict=True))
    return total / max(count, 1.0)
