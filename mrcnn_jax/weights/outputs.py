"""Correspondence of head outputs between a model and the weights that initialize it.

The last layers of the heads (`CLASS_LAYERS`) have outputs for each class or keypoint. `match_names` finds the same
classes or keypoints in the weights by name. If one side has no names, outputs are matched by index when both sides have
equally many, and not at all otherwise. `source_indices` turns this into an index for each output of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from mrcnn_jax.config import ModelConfig

CLASS_LAYERS = ("box_head/logits", "box_head/deltas", "mask_head/logits", "keypoint_head/deconv")
_BACKGROUND, _ANY_CLASS = 0, -1  # next to classes 1..C; _ANY_CLASS: the output of a class-agnostic layer
_MAX_LISTED = 10  # names in a message

OutputKey = tuple[int, Hashable]  # class or keypoint, counted from 1, and which of its outputs


def match_names(
    kind: str, names: Sequence[str], source_names: Sequence[str], count: int, source_count: int
) -> tuple[dict[int, int], str]:
    """Match the `count` classes or keypoints of a model to the `source_count` of other weights by name.

    Case, spaces, hyphens and underscores are ignored where names stay unique without them. `kind` is "classes" or
    "keypoints", for the description.

    Returns the number in the weights of each one in the model that they have, both counted from 1, and a description.
    """
    if len(names) == count and len(source_names) == source_count:
        pairs = _pairs(names, source_names)
        return pairs, f"{kind} matched by name: {_describe(names, source_names, pairs)}"
    unnamed = "the weights do not name their" if len(source_names) != source_count else "the model does not name its"
    if count != source_count:
        reason = f"{unnamed} {kind}; the weights have {source_count}, the model has {count}"
        return {}, f"{reason}: none is matched"
    return {k: k for k in range(1, count + 1)}, f"{unnamed} {kind}; both have {count}: matched by index"


def layer_outputs(model: ModelConfig, layer: str) -> list[OutputKey]:
    """Return the key of each output of one of `CLASS_LAYERS`, in order."""
    classes = list(range(1, model.num_classes + 1))
    if layer == "box_head/logits":
        return [(k, 0) for k in (_BACKGROUND, *classes)]
    if layer == "box_head/deltas":
        return [(k, i) for k in ([_ANY_CLASS] if model.box.class_agnostic else classes) for i in range(4)]
    if layer == "keypoint_head/deconv":
        return [(k, 0) for k in range(1, model.num_keypoints + 1)]
    assert model.mask is not None, f"{layer} belongs to a head that the model does not have"
    masks = [_ANY_CLASS] if model.mask.class_agnostic else classes
    if model.mask.activation == "softmax":
        masks = [_BACKGROUND, *masks]
    cells = (2 * model.mask.pool_size) ** 2 if model.mask.fc_layers else 1
    # The activation is part of the key: softmax logits cannot replace sigmoid logits, nor the reverse.
    return [(k, (model.mask.activation, cell)) for cell in range(cells) for k in masks]


def source_indices(outputs: list[OutputKey], source_outputs: list[OutputKey], pairs: dict[int, int]) -> np.ndarray:
    """Return (len(outputs),) int: the index in `source_outputs` of each output, or -1.

    The background is matched only if at least one class is. A class-agnostic output is used for every class.
    """
    index = {output: i for i, output in enumerate(source_outputs)}
    pairs = {**pairs, _BACKGROUND: _BACKGROUND} if pairs else {}

    def find(k: int, part: Hashable) -> int:
        same_class = index.get((pairs[k], part), -1) if k in pairs else -1
        return index.get((_ANY_CLASS, part), -1) if same_class < 0 and k != _BACKGROUND else same_class

    return np.array([find(*output) for output in outputs])


def _pairs(names: Sequence[str], source_names: Sequence[str]) -> dict[int, int]:
    if tuple(names) == tuple(source_names):
        return {k: k for k in range(1, len(names) + 1)}
    exact = _unique_indices(source_names)
    normalized = _unique_indices(map(_normalize, names))
    source_normalized = _unique_indices(map(_normalize, source_names))
    pairs = {}
    for k, name in enumerate(names, 1):
        if name in exact:
            pairs[k] = exact[name]
        elif _normalize(name) in source_normalized and _normalize(name) in normalized:
            pairs[k] = source_normalized[_normalize(name)]
    return pairs


def _unique_indices(names: Iterable[str]) -> dict[str, int]:
    """The indices, counted from 1, of the names that occur once."""
    names = list(names)
    return {name: k for k, name in enumerate(names, 1) if names.count(name) == 1}


def _normalize(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _describe(names: Sequence[str], source_names: Sequence[str], pairs: dict[int, int]) -> str:
    def pair_name(k: int) -> str:
        name, source_name = names[k - 1], source_names[pairs[k] - 1]
        return name if name == source_name else f"{name} as {source_name}"

    groups = {
        "with the same index": [pair_name(k) for k in pairs if pairs[k] == k],
        "with another index": [f"{pair_name(k)} ({pairs[k]} to {k})" for k in pairs if pairs[k] != k],
        "not in the weights": [name for k, name in enumerate(names, 1) if k not in pairs],
        "not in the model": [name for k, name in enumerate(source_names, 1) if k not in pairs.values()],
    }
    return "; ".join(f"{len(group)} {what}: {_listed(group)}" for what, group in groups.items() if group)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
