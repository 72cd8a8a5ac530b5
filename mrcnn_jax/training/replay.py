"""Repeats a training step that was not finite, from the file that `nonfinite_dump` wrote, and finds the cause."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.gradients import make_gradients
from mrcnn_jax.training.nonfinite_dump import FailureFile, versions
from mrcnn_jax.training.step import image_keys, loss_and_grad_norm

_SHOWN = 10  # arrays in a list
Outcome = tuple[dict[str, Any], Any]  # metrics of a step, and its gradients


def replay(saved: FailureFile) -> bool:
    """Do the step again and tell everything about it; whether it was not finite."""
    failure = saved.failure
    _introduce(saved)
    bad_state = _report_state(failure.state)
    metrics, gradients = whole_step(saved)
    print(f"\nthen: {_line(failure.metrics)}\nnow:  {_line(metrics)}")
    bad = not metrics["finite"]
    if bad:
        _report_bad("gradients", gradients)
    print("\neach image alone:", flush=True)
    blamed = []
    for image, alone in single_images(saved):
        mark = "" if alone["finite"] else f"   <- {_not_finite(alone)}"
        print(f"  image {image}: {_line(alone)}{mark}", flush=True)
        blamed += [] if alone["finite"] else [image]
    print(f"\n{_conclusion(metrics, bad_state, blamed, failure.image_ids)}", flush=True)
    return bad


def whole_step(saved: FailureFile) -> Outcome:
    """The losses and gradients of the whole batch, in parts of the size that the run's devices worked on at a time."""
    config, failure = saved.config, saved.failure
    parts = config.train.accumulate
    batch = failure.batch
    if _synchronized(config.model):
        # Their statistics are of the k-th parts of all devices: these come together.
        order = np.arange(len(batch.valid)).reshape(failure.devices, parts, -1).swapaxes(0, 1).ravel()
        batch = jax.tree.map(lambda array: array[order], batch)
    else:
        parts *= failure.devices
    return _outcome(_step_function(config, parts)(batch, *_inputs(saved)))


def single_images(saved: FailureFile) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The id of each image, and the metrics of a batch that holds nothing else."""
    batch = saved.failure.batch
    step = _step_function(saved.config, 1)
    for image, slot in zip(saved.failure.image_ids, np.flatnonzero(batch.valid), strict=True):
        alone = jax.tree.map(lambda array, slot=slot: array[slot : slot + 1], batch)
        yield image, _outcome(step(alone, *_inputs(saved)))[0]


@functools.cache
def _step_function(config: Config, parts: int) -> Callable[..., Any]:
    """(batch, params, model_state, step, key) -> metrics and gradients, on one device."""
    train = dataclasses.replace(config.train, accumulate=parts)
    model = build_model(config.model)
    gradients = make_gradients(model.clone(remat=train.remat), dataclasses.replace(config, train=train), None)

    @jax.jit
    def step(batch: Batch, params: Any, model_state: Any, index: jax.Array, key: jax.Array) -> Outcome:
        found = gradients(params, model_state, batch, image_keys(key, index, batch.indices))
        loss, norm, finite = loss_and_grad_norm(found)
        return {"loss": loss, **found.losses, "grad_norm": norm, "finite": finite}, found.gradients

    return step


def _inputs(saved: FailureFile) -> tuple[Any, ...]:
    """What a step takes beside its images."""
    state = saved.failure.state
    return state["params"], state.get("model_state", {}), state["step"], saved.failure.key


def _outcome(outcome: Outcome) -> Outcome:
    metrics, gradients = jax.device_get(outcome)
    return {name: value.item() for name, value in metrics.items()}, gradients


def _synchronized(model: ModelConfig) -> bool:
    """Whether any norm takes its statistics from all devices."""
    parts = (model.backbone, model.fpn, model.box, model.mask)
    return any(part is not None and part.norm == "sync_bn" for part in parts)


def _introduce(saved: FailureFile) -> None:
    failure, here = saved.failure, versions()
    print(
        f"step {int(failure.state['step']) + 1} of {saved.config.name!r}, images {failure.image_ids}, on"
        f" {failure.devices} devices"
    )
    for name, version in saved.versions.items():
        if here.get(name) != version:
            print(f"{name}: {version} then, {here.get(name)} now")


def _report_state(state: dict[str, Any]) -> bool:
    """Say what is wrong with the state before the step; whether anything is."""
    found = False
    for name in ("params", "model_state", "opt_state", "ema"):
        found |= _report_bad(name, state.get(name, {}))
    sizes = {path: float(np.abs(array).max(initial=0)) for path, array in _floats(state["params"])}
    largest = max(sizes, key=sizes.__getitem__)
    if not found:
        print(f"the state before the step is finite; the largest parameter is {sizes[largest]:.3g}, in {largest}")
    return found


def _report_bad(name: str, tree: Any) -> bool:
    """List the arrays of `tree` that are not finite, in the order of their paths; whether there are any."""
    arrays = _floats(tree)
    bad = [(path, array) for path, array in arrays if not np.isfinite(array).all()]
    if bad:
        print(f"{name}: {len(bad)} of {len(arrays)} arrays are not finite")
    for path, array in bad[:_SHOWN]:
        print(f"  {path}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values")
    if len(bad) > _SHOWN:
        print(f"  and {len(bad) - _SHOWN} more")
    return bool(bad)


def _floats(tree: Any) -> list[tuple[str, np.ndarray]]:
    """The arrays of floating-point numbers in nested dicts, by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(path), leaf) for path, leaf in leaves if np.issubdtype(leaf.dtype, np.floating)]


def _line(metrics: dict[str, Any]) -> str:
    shown = [name for name in metrics if name.startswith("loss") or name == "grad_norm"]
    return "  ".join(f"{name} {metrics[name]:.7g}" for name in shown)


def _not_finite(metrics: dict[str, Any]) -> str:
    """What of a step is not finite, in words."""
    losses = [name for name in metrics if name.startswith("loss_") and not np.isfinite(metrics[name])]
    if losses:
        return f"{', '.join(losses)} not finite"
    if np.isfinite(metrics["loss"]):
        return "the losses are finite, the norm of their gradient is not"
    return "each loss is finite, their sum is not"


def _conclusion(metrics: dict[str, Any], bad_state: bool, blamed: list[Any], image_ids: list[Any]) -> str:
    if metrics["finite"]:
        return "all finite here: the step cannot be reproduced on this device"
    said = f"reproduced: {_not_finite(metrics)}. "
    if bad_state:
        return said + (
            "The state was not finite before the step, so no image is to blame: look at the weights that the run began"
            " with, or go back to an earlier checkpoint"
        )
    if len(blamed) == len(image_ids) > 1:
        return said + (
            "No image alone is finite: it is the parameters (above: the largest), not an image. A lower learning"
            " rate, a longer warmup or optimizer.clip_norm often helps"
        )
    if blamed:
        return said + f"Not finite alone: {', '.join(f'image {image}' for image in blamed)}"
    return said + "Each image alone is finite: it takes all of them"
