"""Anybody's weights into a model: for inference as they are, or as the beginning of a training.

The file decides what goes with its weights (preprocessing, where blocks have their stride, the epsilon of frozen batch
norms, and for inference the classes); what it decides is returned as part of the configuration.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import flax
import jax
import numpy as np

from mrcnn_jax.config import BoxHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import Variables, build_model, init_variables
from mrcnn_jax.weights import caffe2_names, naming, preprocessing
from mrcnn_jax.weights.coco_categories import KEYPOINTS, SKELETON, categories
from mrcnn_jax.weights.naming import Flat, Naming, Path, State
from mrcnn_jax.weights.outputs import CLASS_LAYERS, matched, outputs, source_of
from mrcnn_jax.weights.preprocessing import Preprocessing, apply_preprocessing, preprocessing_of
from mrcnn_jax.weights.source import Source, Weights, detect_format

log = logging.getLogger(__name__)

Shapes = Mapping[Path, tuple[int, ...]]
Partial = tuple[np.ndarray, np.ndarray]  # a variable, and which of its outputs hold values
_HEADS = ("box_head", "mask_head", "keypoint_head")


def import_weights(
    source: Weights,
    model: ModelConfig,
    *,
    format: Literal["torchvision", "detectron2", "auto"] = "auto",
    frozen_bn_eps: float | None = None,
) -> tuple[ModelConfig, Variables]:
    """A peer's detection model, ready for inference: its configuration and its variables (NumPy arrays, float32).

    Args:
      source: a file (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      model: the architecture, as in `presets`. The number of classes, their ids and names (where `model` does not have
        as many), preprocessing, stride and epsilon are replaced by those of the weights.
      format: whose names are expected; "auto" looks. Detectron (2018) counts as "detectron2".
      frozen_bn_eps: epsilon of frozen batch norms; default: see `preprocessing`. Which one is used is logged.

    Raises WeightsError for a file that cannot be read, is of another format, holds no whole model, or does not fit
    `model`; in the last case with the list of all that is missing, unexpected or of another shape.
    """
    found = detect_format(source)
    if not found.kind.whole:
        raise WeightsError(
            f"{found.label} is {found.kind.description}, not a detection model; a training can start from it (init)"
        )
    if format not in ("auto", found.kind.format):
        raise WeightsError(f"{found.label} is {found.kind.description}, not in the format {format!r}")
    model = _with_classes(_follow(model, found, frozen_bn_eps), found)
    shapes = naming.template(build_model(model))
    given = naming.match(found.kind.naming, shapes, found.state, source=found.label)
    return model, flax.traverse_util.unflatten_dict(given)


def initial_from_file(
    model: ModelConfig, source: Weights, key: jax.Array, label: str = ""
) -> tuple[ModelConfig, Variables]:
    """What a training of `model`, whose classes are known, starts from: weights of a whole model or of a classifier.

    Classes and keypoints are matched by name (`outputs`). Classes and heads that the weights lack, and all that a
    classifier lacks, get random values; heads that the model lacks are left out; each is logged. Returns the
    configuration with the preprocessing, stride and epsilon of the weights, and the variables. Messages call the file
    `label`, or by its path.

    Raises WeightsError for a file that cannot be read, is of no known kind, or does not fit; see `import_weights`.
    """
    found = detect_format(source, label)
    model = _follow(model, found, None)
    log.info("%s: %s", found.label, found.kind.description)
    if model.backbone.norm in ("bn", "sync_bn") and caffe2_names.has_fused_norms(found.state):
        raise WeightsError(
            f"{found.label}: its batch norms are fused into a scale and an offset, which do not fit the statistics of a"
            f" batch: set model.backbone.norm=frozen_bn instead of {model.backbone.norm}"
        )
    shapes = naming.template(build_model(model))
    if found.kind.whole:
        theirs = _as_in_file(model, found)
        return model, _taken_over(model, theirs, shapes, found.kind.naming, found.state, key, found.label)
    wanted = {path: shape for path, shape in shapes.items() if _in_backbone(path)}
    given = naming.match(found.kind.naming, wanted, found.state, source=found.label)
    return model, _fill_missing(model, shapes, given, key, found.label)


def initial_from_run(
    model: ModelConfig, run: ModelConfig, variables: Variables, key: jax.Array, label: str
) -> tuple[ModelConfig, Variables]:
    """As `initial_from_file`, from the configuration and the variables of another run of ours."""
    model = apply_preprocessing(model, preprocessing_of(run))
    shapes = naming.template(build_model(model))
    leaves = flax.traverse_util.flatten_dict(jax.device_get(variables))
    names = naming.OURS.names(leaves, naming.describe(shapes))
    state = {names[path]: leaf for path, leaf in leaves.items()}
    begun = _taken_over(model, run, shapes, naming.OURS, state, key, label)
    before, after = run.backbone.norm, model.backbone.norm
    if before != after:
        log.info("%s: model.backbone.norm is %s, was %s: constants and statistics are kept", label, after, before)
    return model, begun


def _taken_over(
    model: ModelConfig, theirs: ModelConfig, shapes: Shapes, peer: Naming, state: State, key: jax.Array, label: str
) -> Variables:
    """Variables of `model` out of `state`, in which the outputs of the heads are those of the model `theirs`."""
    ours, there = {path[1] for path in shapes}, {_head(name) for name in state} - {""}
    if extra := sorted(there - ours):
        log.info("%s: left out, since the model has none: %s", label, ", ".join(extra))
    state = {name: value for name, value in state.items() if _head(name) not in extra}
    wanted = {
        path: _with_outputs(path, shape, theirs)
        for path, shape in shapes.items()
        if path[1] not in _HEADS or path[1] in there
    }
    given = naming.match(peer, wanted, state, source=label)
    pairs = _matched_classes(model, theirs, there & ours, label)
    partial: dict[Path, Partial] = {}
    for path in [path for path in given if naming.module_of(path) in CLASS_LAYERS]:
        layer, value = naming.module_of(path), given.pop(path)
        places = source_of(outputs(model, layer), outputs(theirs, layer), pairs[path[1]])
        if (places >= 0).all():
            given[path] = value[..., places]
        elif (places >= 0).any():
            partial[path] = value[..., places], places >= 0
    return _fill_missing(model, shapes, given, key, label, partial)


def _matched_classes(
    model: ModelConfig, theirs: ModelConfig, heads: Collection[str], label: str
) -> dict[str, dict[int, int]]:
    """For each of `heads`, which of its classes or keypoints are which of `theirs`; logged."""
    pairs = {}
    if "box_head" in heads or "mask_head" in heads:
        names = model.category_names, theirs.category_names
        classes = matched("classes", *names, model.num_classes, theirs.num_classes)
        log.info("%s: %s", label, classes.description)
        pairs = {"box_head": classes.pairs, "mask_head": classes.pairs}
    if "keypoint_head" in heads:
        names = model.keypoint_names, theirs.keypoint_names
        keypoints = matched("keypoints", *names, model.num_keypoints, theirs.num_keypoints)
        log.info("%s: %s", label, keypoints.description)
        pairs["keypoint_head"] = keypoints.pairs
    return pairs


def _as_in_file(model: ModelConfig, found: Source) -> ModelConfig:
    """`model` with heads for the classes and keypoints of a file, whose numbers tell whether they are COCO's."""
    rows = {layer: _rows(found, layer) for layer in CLASS_LAYERS}
    classes = rows["box_head/logits"] - 1 if rows["box_head/logits"] else model.num_classes
    keypoints = rows["keypoint_head/deconv"]
    keypoint_names = KEYPOINTS if keypoints == len(KEYPOINTS) else ()
    _, names = categories(classes, of_persons=bool(keypoint_names))
    if names or keypoint_names:
        which = " and ".join(["classes"] * bool(names) + ["keypoints"] * bool(keypoint_names))
        log.info("%s: its %s are taken for COCO's, since they are as many", found.label, which)

    def is_agnostic(outputs: int, head: BoxHeadConfig | MaskHeadConfig) -> bool:
        return outputs == 1 and (classes > 1 or head.class_agnostic)

    box = dataclasses.replace(model.box, class_agnostic=is_agnostic(rows["box_head/deltas"] // 4, model.box))
    mask, masks = model.mask, rows["mask_head/logits"]
    if mask is not None:
        activation: Literal["sigmoid", "softmax"] = "softmax" if masks == classes + 1 else "sigmoid"
        mask = dataclasses.replace(mask, class_agnostic=is_agnostic(masks, mask), activation=activation)
    keypoint = model.keypoint if keypoints else None
    if keypoint is not None:
        keypoint = dataclasses.replace(keypoint, num_keypoints=keypoints)
    return dataclasses.replace(
        model,
        num_classes=classes,
        category_names=names,
        keypoint_names=keypoint_names,
        box=box,
        mask=mask,
        keypoint=keypoint,
    )


def _rows(found: Source, layer: str) -> int:
    """How many outputs a layer has in a file; 0 where it has no such layer."""
    path = ("params", *layer.split("/"), "bias")
    network = naming.describe({})
    value = found.state.get(found.kind.naming.names([path], network)[path], np.zeros(0))
    return np.size(found.kind.naming.to_ours(path, value, network))


def _with_outputs(path: Path, shape: tuple[int, ...], theirs: ModelConfig) -> tuple[int, ...]:
    """The shape that a variable of this path has in `theirs`, if only classes and keypoints differ."""
    layer = naming.module_of(path)
    return (*shape[:-1], len(outputs(theirs, layer))) if layer in CLASS_LAYERS else shape


def _head(name: str) -> str:
    """The head that a tensor of any naming is of; "" if of none."""
    found = re.search(r"(?:^|[./])(box|mask|keypoint)_(?:head|predictor)[./]", name)
    return f"{found[1]}_head" if found else ""


def _follow(model: ModelConfig, found: Source, frozen_bn_eps: float | None) -> ModelConfig:
    path = found.path if found.kind.format == "torchvision" and found.kind.whole else None
    chosen = preprocessing.with_eps(found.preprocessing, model.backbone.norm, path, frozen_bn_eps)
    _report(found.label, model, chosen)
    return apply_preprocessing(model, chosen)


def _report(label: str, model: ModelConfig, chosen: Preprocessing) -> None:
    """Log which fields of the configuration the weights change."""
    before = preprocessing_of(model)
    fields = zip(chosen._fields, map(_shown, before), map(_shown, chosen), strict=True)
    changes = [f"{name} is {new}, was {old}" for name, old, new in fields if old != new]
    if changes:
        log.info("%s decides: %s", label, "; ".join(changes))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _with_classes(model: ModelConfig, found: Source) -> ModelConfig:
    """The model with the number of classes of the weights; ids and names stay where there are as many.

    One class with 17 keypoints is COCO's person.
    """
    name = found.kind.naming.class_scores
    if name not in found.state:
        raise WeightsError(f"{found.label} has no {name}: it is not a whole detection model")
    count = len(found.state[name]) - 1
    if count == len(model.category_ids):
        return dataclasses.replace(model, num_classes=count)
    ids, names = categories(count, of_persons=model.keypoint is not None)
    model = dataclasses.replace(model, num_classes=count, category_ids=ids, category_names=names)
    if count == 1 and model.num_keypoints == len(KEYPOINTS) and not model.keypoint_names:
        model = dataclasses.replace(model, keypoint_names=KEYPOINTS, skeleton=SKELETON)
    return model


def _in_backbone(path: Path) -> bool:
    return path[1] in ("backbone", "res5")


def _fill_missing(
    model: ModelConfig, shapes: Shapes, given: Flat, key: jax.Array, label: str, partial: Mapping[Path, Partial] = {}
) -> Variables:
    """The given variables, and random ones for the rest, which is logged by modules."""
    rest = [path for path in shapes if path not in given]
    if new := [path for path in rest if path not in partial]:
        log.info("%s: random initial values for %s", label, ", ".join(_named(new, given.keys() | partial.keys())))
    if rest:
        # Only the rest: drawing what is given as well would take seconds more.
        fresh = flax.traverse_util.flatten_dict(jax.device_get(init_variables(build_model(model), key, rest)))
        mixed = {path: np.where(known, value, fresh[path]) for path, (value, known) in partial.items()}
        given = {**given, **fresh, **mixed}
    return flax.traverse_util.unflatten_dict(given)


def _named(paths: Iterable[Path], others: Iterable[Path]) -> list[str]:
    """The modules of some variables; a part of the network by its own name, if nothing of it is among the others."""
    parts = {path[1] for path in others}
    return sorted({naming.module_of(path) if path[1] in parts else path[1] for path in paths})
