"""Repeat a training step saved by `nonfinite_dump`, and find the images and losses that are not finite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.runtime.trees import leaves_by_path
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.gradients import make_gradient_function
from mrcnn_jax.training.nonfinite_dump import FailedStepFile, format_losses, versions
from mrcnn_jax.training.step import image_keys, loss_and_grad_norm

_MAX_LISTED = 10  # arrays
StepResult = tuple[dict[str, Any], Any]  # metrics of a step, and its gradients


def replay(saved: FailedStepFile) -> bool:
    """Repeat the step, print a report, and return whether it was not finite again."""
    failed_step = saved.failed_step
    _print_header(saved)
    bad_state = _report_state(failed_step.state)
    metrics, gradients = replay_batch(saved)
    print(f"\nthen: {format_losses(failed_step.metrics)}\nnow:  {format_losses(metrics)}")
    reproduced = not metrics["finite"]
    if reproduced:
        _report_nonfinite("gradients", gradients)
    print("\neach image alone:", flush=True)
    bad_images = []
    batch = failed_step.batch
    for image_id, slot in zip(failed_step.image_ids, np.flatnonzero(batch.valid), strict=True):
        alone, _ = _replay(saved, jax.tree.map(lambda array, slot=slot: array[slot : slot + 1], batch))
        mark = "" if alone["finite"] else f"   <- {_describe_nonfinite(alone)}"
        print(f"  image {image_id}: {format_losses(alone)}{mark}", flush=True)
        bad_images += [] if alone["finite"] else [image_id]
    print(f"\n{_conclusion(metrics, bad_state, bad_images, failed_step.image_ids)}", flush=True)
    return reproduced


def replay_batch(saved: FailedStepFile) -> StepResult:
    """Compute losses and gradients of the global batch, in micro-batches as large as those of the run's devices."""
    config, failed_step = saved.config, saved.failed_step
    accumulate = config.train.accumulate
    batch = failed_step.batch
    if _has_sync_bn(config.model):
        # Statistics were synchronized over the k-th micro-batches of all devices: bring these together.
        order = np.arange(len(batch.valid)).reshape(failed_step.devices, accumulate, -1).swapaxes(0, 1).ravel()
        batch = jax.tree.map(lambda array: array[order], batch)
    else:
        accumulate *= failed_step.devices
    return _replay(saved, batch, accumulate)


def _replay(saved: FailedStepFile, batch: Batch, accumulate: int = 1) -> StepResult:
    """Repeat the step with another batch."""
    state = saved.failed_step.state
    step = _step_function(saved.config, accumulate)
    result = step(batch, state["params"], state.get("model_state", {}), state["step"], saved.failed_step.key)
    metrics, gradients = jax.device_get(result)
    return {name: value.item() for name, value in metrics.items()}, gradients


@functools.cache
def _step_function(config: Config, accumulate: int) -> Callable[..., Any]:
    """Return the function (batch, params, model_state, step, key) -> metrics and gradients, on one device."""
    train = dataclasses.replace(config.train, accumulate=accumulate)
    model = build_model(config.model).clone(remat=train.remat)
    compute_gradients = make_gradient_function(model, dataclasses.replace(config, train=train), None)

    @jax.jit
    def step(batch: Batch, params: Any, model_state: Any, index: jax.Array, key: jax.Array) -> StepResult:
        computed = compute_gradients(params, model_state, batch, image_keys(key, index, batch.indices))
        loss, norm, finite = loss_and_grad_norm(computed)
        return {"loss": loss, **computed.losses, "grad_norm": norm, "finite": finite}, computed.gradients

    return step


def _has_sync_bn(model: ModelConfig) -> bool:
    parts = (model.backbone, model.fpn, model.box, model.mask)
    return any(part is not None and part.norm == "sync_bn" for part in parts)


def _print_header(saved: FailedStepFile) -> None:
    failed_step, current = saved.failed_step, versions()
    print(
        f"step {int(failed_step.state['step']) + 1} of {saved.config.name!r}, images {failed_step.image_ids}, on"
        f" {failed_step.devices} devices"
    )
    for name, version in saved.versions.items():
        if current.get(name) != version:
            print(f"{name}: {version} then, {current.get(name)} now")


def _report_state(state: dict[str, Any]) -> bool:
    """Print which arrays of the state before the step are not finite; return whether there are any."""
    bad = False
    for name in ("params", "model_state", "opt_state", "ema"):
        bad |= _report_nonfinite(name, state.get(name, {}))
    sizes = {path: float(np.abs(array).max(initial=0)) for path, array in _float_arrays(state["params"])}
    largest = max(sizes, key=sizes.__getitem__)
    if not bad:
        print(f"the state before the step is finite; the largest parameter is {sizes[largest]:.3g}, in {largest}")
    return bad


def _report_nonfinite(name: str, tree: Any) -> bool:
    """Print the arrays of `tree` that are not finite; return whether there are any."""
    arrays = _float_arrays(tree)
    bad = [(path, array) for path, array in arrays if not np.isfinite(array).all()]
    if bad:
        print(f"{name}: {len(bad)} of {len(arrays)} arrays are not finite")
    for path, array in bad[:_MAX_LISTED]:
        print(f"  {path}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values")
    if len(bad) > _MAX_LISTED:
        print(f"  and {len(bad) - _MAX_LISTED} more")
    return bool(bad)


def _float_arrays(tree: Any) -> list[tuple[str, np.ndarray]]:
    """Return the floating-point arrays in nested dicts, each with its path."""
    return [(path, leaf) for path, leaf in leaves_by_path(tree).items() if np.issubdtype(leaf.dtype, np.floating)]


def _describe_nonfinite(metrics: dict[str, Any]) -> str:
    """Describe which losses, or which sum of them, are not finite."""
    losses = [name for name in metrics if name.startswith("loss_") and not np.isfinite(metrics[name])]
    if losses:
        return f"{', '.join(losses)} not finite"
    if np.isfinite(metrics["loss"]):
        return "the losses are finite, the norm of their gradient is not"
    return "each loss is finite, their sum is not"


def _conclusion(metrics: dict[str, Any], bad_state: bool, bad_images: list[Any], image_ids: list[Any]) -> str:
    if metrics["finite"]:
        return "all finite here: the step cannot be reproduced on this device"
    reproduced = f"reproduced: {_describe_nonfinite(metrics)}. "
    if bad_state:
        return reproduced + (
            "The state was not finite before the step, so the images are not the cause: check the initial weights of"
            " the run, or resume from an earlier checkpoint"
        )
    if len(bad_images) == len(image_ids) > 1:
        return reproduced + (
            "No image alone is finite, so the parameters are the cause (the largest is named above). A lower learning"
            " rate, a longer warmup or optimizer.clip_norm often helps"
        )
    if bad_images:
        return reproduced + f"Not finite alone: {', '.join(f'image {image_id}' for image_id in bad_images)}"
    return reproduced + "Each image alone is finite: only the whole batch is not"
