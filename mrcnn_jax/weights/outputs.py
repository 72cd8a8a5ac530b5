"""Which output of a head is of which class or keypoint, and where the same one is in another model's weights.

Names decide. Where a side has none, outputs are matched by position if there are equally many, else not at all.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import ModelConfig

# The layers with outputs for each class or keypoint.
CLASS_LAYERS = ("box_head/logits", "box_head/deltas", "mask_head/logits", "keypoint_head/deconv")
_BACKGROUND, _ANY = 0, -1  # beside classes 1..C; _ANY: the output of a class-agnostic layer
_SHOWN = 10  # names in a message

Output = tuple[int, Hashable]  # its class or keypoint, counted from 1, and which of its numbers it is


class Matched(NamedTuple):
    """Which classes or keypoints of a model, counted from 1, are which of other weights."""

    pairs: dict[int, int]
    description: str  # what is kept, moved, new and left out


def matched(kind: str, ours: Sequence[str], theirs: Sequence[str], count: int, their_count: int) -> Matched:
    """Match a model's `count` classes or keypoints to `their_count` of other weights by their names.

    Case, spaces, hyphens and underscores make no difference where names stay unique without them. Messages call them
    `kind`.
    """
    if len(ours) == count and len(theirs) == their_count:
        pairs = _pairs(ours, theirs)
        return Matched(pairs, f"{kind} by name: {_described(ours, theirs, pairs)}")
    unnamed = "the weights do not name their" if len(theirs) != their_count else "the model does not name its"
    if count != their_count:
        return Matched({}, f"{unnamed} {kind}; there are {their_count}, not {count}: all begin anew")
    return Matched({k: k for k in range(1, count + 1)}, f"{unnamed} {kind}; there are {count}: each keeps its place")


def outputs(model: ModelConfig, layer: str) -> list[Output]:
    """What the outputs of one of `CLASS_LAYERS` are, in order."""
    classes = list(range(1, model.num_classes + 1))
    if layer == "box_head/logits":
        return [(k, 0) for k in (_BACKGROUND, *classes)]
    if layer == "box_head/deltas":
        return [(k, i) for k in ([_ANY] if model.box.class_agnostic else classes) for i in range(4)]
    if layer == "keypoint_head/deconv":
        return [(k, 0) for k in range(1, model.num_keypoints + 1)]
    assert model.mask is not None, f"{layer} is of no head that the model has"
    masks = [_ANY] if model.mask.class_agnostic else classes
    if model.mask.activation == "softmax":
        masks = [_BACKGROUND, *masks]
    cells = (2 * model.mask.pool_size) ** 2 if model.mask.fc_layers else 1
    # Logits that compete in a softmax are no log-odds on their own: neither kind takes the other's place.
    return [(k, (model.mask.activation, cell)) for cell in range(cells) for k in masks]


def source_of(ours: list[Output], theirs: list[Output], pairs: dict[int, int]) -> np.ndarray:
    """(len(ours),) int: which of the outputs `theirs` each of ours begins with; -1: none.

    The background is taken only with a class that it was trained against. An output for any class serves each class.
    """
    place = {output: i for i, output in enumerate(theirs)}
    same = {**pairs, _BACKGROUND: _BACKGROUND} if pairs else {}

    def find(k: int, part: Hashable) -> int:
        own = place.get((same[k], part), -1) if k in same else -1
        return place.get((_ANY, part), -1) if own < 0 and k != _BACKGROUND else own

    return np.array([find(*output) for output in ours])


def _pairs(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    if tuple(ours) == tuple(theirs):
        return {k: k for k in range(1, len(ours) + 1)}
    exact, alike, ours_alike = _unique(theirs), _unique(map(_plain, theirs)), _unique(map(_plain, ours))
    pairs = {}
    for k, name in enumerate(ours, 1):
        if name in exact:
            pairs[k] = exact[name]
        elif _plain(name) in alike and _plain(name) in ours_alike:
            pairs[k] = alike[_plain(name)]
    return pairs


def _unique(names: Iterable[str]) -> dict[str, int]:
    """The places, counted from 1, of the names that occur once."""
    names = list(names)
    return {name: k for k, name in enumerate(names, 1) if names.count(name) == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _described(ours: Sequence[str], theirs: Sequence[str], pairs: dict[int, int]) -> str:
    def named(k: int) -> str:
        name, other = ours[k - 1], theirs[pairs[k] - 1]
        return name if name == other else f"{name} as {other}"

    groups = {
        "keep their place": [named(k) for k in pairs if pairs[k] == k],
        "come from another place": [f"{named(k)} ({pairs[k]} to {k})" for k in pairs if pairs[k] != k],
        "begin anew": [name for k, name in enumerate(ours, 1) if k not in pairs],
        "of the weights are left out": [name for k, name in enumerate(theirs, 1) if k not in pairs.values()],
    }
    return "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in groups.items() if names)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
