"""Names and layouts of torchvision's detection models, in both directions.

torchvision keeps a background row in its box deltas and a background channel in its mask predictor; neither is ever
read, so they are dropped on import and written as zeros on export.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from mrcnn_jax.models.rcnn import MaskRCNN, Variables, variable_shapes

Path = tuple[str, ...]

# Our module path -> torchvision's module name; the first rule that matches the whole path is used.
_MODULES = [
    (r"backbone/stem/conv", "backbone.body.conv1"),
    (r"backbone/stem/norm", "backbone.body.bn1"),
    (r"backbone/res(\d)/block(\d+)/conv(\d)", "backbone.body.layer{0-1}.{1}.conv{2}"),
    (r"backbone/res(\d)/block(\d+)/norm(\d)", "backbone.body.layer{0-1}.{1}.bn{2}"),
    (r"backbone/res(\d)/block(\d+)/shortcut", "backbone.body.layer{0-1}.{1}.downsample.0"),
    (r"backbone/res(\d)/block(\d+)/shortcut_norm", "backbone.body.layer{0-1}.{1}.downsample.1"),
    (r"fpn/lateral(\d)", "backbone.fpn.inner_blocks.{0-2}.0"),
    (r"fpn/output(\d)", "backbone.fpn.layer_blocks.{0-2}.0"),
    (r"rpn_head/conv(\d)", "rpn.head.conv.{0-1}.0"),
    (r"rpn_head/objectness", "rpn.head.cls_logits"),
    (r"rpn_head/deltas", "rpn.head.bbox_pred"),
    (r"box_head/fc1", "roi_heads.box_head.fc6"),
    (r"box_head/fc2", "roi_heads.box_head.fc7"),
    (r"box_head/logits", "roi_heads.box_predictor.cls_score"),
    (r"box_head/deltas", "roi_heads.box_predictor.bbox_pred"),
    (r"mask_head/conv(\d)", "roi_heads.mask_head.{0-1}.0"),
    (r"mask_head/deconv", "roi_heads.mask_predictor.conv5_mask"),
    (r"mask_head/logits", "roi_heads.mask_predictor.mask_fcn_logits"),
]
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Rows for the background at the front of the output axis that only torchvision has.
_BACKGROUND_ROWS = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}


def torchvision_name(path: Path) -> str:
    """torchvision's name of one of our variables, `path` without its collection. Raises KeyError if it has none."""
    module = "/".join(path[:-1])
    module = re.sub(r"(norm\d?)/norm$", r"\1", module)
    for pattern, template in _MODULES:
        if found := re.fullmatch(pattern, module):
            return f"{_fill(template, found.groups())}.{_LEAVES[path[-1]]}"
    raise KeyError(f"torchvision has no counterpart of {'/'.join(path)}")


def import_state(model: MaskRCNN, state: Mapping[str, np.ndarray]) -> Variables:
    """Our variables from a torchvision state dict of the same architecture.

    Raises ValueError that lists every missing, unexpected and wrongly shaped tensor.
    """
    template = flax.traverse_util.flatten_dict(variable_shapes(model))
    names = {path: torchvision_name(path[1:]) for path in template}
    ignored = {name for name in state if name.endswith("num_batches_tracked")}
    problems = [f"missing: {name}" for name in sorted(set(names.values()) - set(state))]
    problems += [f"unexpected: {name}" for name in sorted(set(state) - set(names.values()) - ignored)]
    variables = {}
    for path, leaf in template.items():
        if names[path] not in state:
            continue
        value = _to_ours(names[path], np.asarray(state[names[path]]), leaf.shape)
        if value.shape != leaf.shape:
            problems.append(
                f"shape: {names[path]} is {state[names[path]].shape}, which gives {value.shape}, not {leaf.shape}"
            )
        variables[path] = value
    if problems:
        raise ValueError("these weights do not fit the model:\n  " + "\n  ".join(problems))
    return flax.traverse_util.unflatten_dict(variables)


def export_state(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `tree` (`{collection: ...}`, variables or gradients) under torchvision's names and layouts."""
    leaves = flax.traverse_util.flatten_dict(dict(tree))
    names = {path: torchvision_name(path[1:]) for path in leaves}
    return {names[path]: _to_torch(names[path], np.asarray(leaf)) for path, leaf in leaves.items()}


def _to_ours(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    module = name.rpartition(".")[0]
    value = value[_BACKGROUND_ROWS.get(module, 0) :]
    if module.endswith("conv5_mask") and value.ndim == 4:
        return value.transpose(2, 3, 0, 1)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if module.endswith("box_head.fc6") and value.shape == shape[::-1] and value.ndim == 2:
        side = _pool_side(shape[0])
        return value.reshape(len(value), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(value))
    return value.T if value.ndim == 2 else value


def _to_torch(name: str, value: np.ndarray) -> np.ndarray:
    module = name.rpartition(".")[0]
    if module.endswith("conv5_mask") and value.ndim == 4:
        value = value.transpose(2, 3, 0, 1)
    elif value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif module.endswith("box_head.fc6") and value.ndim == 2:
        side = _pool_side(value.shape[0])
        value = value.reshape(side, side, -1, value.shape[1]).transpose(3, 2, 0, 1).reshape(value.shape[1], -1)
    elif value.ndim == 2:
        value = value.T
    rows = _BACKGROUND_ROWS.get(module, 0)
    return np.concatenate([np.zeros((rows, *value.shape[1:]), value.dtype), value])


def _pool_side(inputs: int) -> int:
    """Side of the pooled RoI that a fully connected layer reads: 7 in every torchvision model."""
    side = 7
    if inputs % (side * side):
        raise ValueError(f"roi_heads.box_head.fc6 reads RoIs of {side} x {side} cells, the model's has {inputs} inputs")
    return side


def _fill(template: str, groups: tuple[str, ...]) -> str:
    """Put regex groups into `{index}` or `{index-offset}`."""

    def value(found: re.Match[str]) -> str:
        text = groups[int(found[1])]
        return str(int(text) - int(found[2])) if found[2] else text

    return re.sub(r"\{(\d)(?:-(\d))?\}", value, template)
