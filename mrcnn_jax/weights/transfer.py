"""Weights of other projects and of earlier runs as variables of a model, for inference or to start training from.

- `import_weights`: a whole detection model of torchvision or Detectron2, ready for inference.
- `init_from_file`: initial variables of a training run, from a detection model or an ImageNet classifier.
- `init_from_run`: initial variables of a training run, from another run of this project.

Each returns the model's configuration together with the variables, because weights determine some of its fields: the
preprocessing, the stride of residual blocks, the epsilon of frozen batch norms and, for inference, the classes.
Changed fields are logged.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax
import jax
import numpy as np

from mrcnn_jax.config import BoxHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.models.mask_rcnn import Variables, build_model, init_variables
from mrcnn_jax.weights import caffe2_names, naming, preprocessing, torchvision_names
from mrcnn_jax.weights.coco_categories import PERSON_KEYPOINTS, PERSON_SKELETON, coco_categories
from mrcnn_jax.weights.naming import FlatVariables, VariablePath
from mrcnn_jax.weights.outputs import CLASS_LAYERS, layer_outputs, match_names, source_indices
from mrcnn_jax.weights.preprocessing import apply_preprocessing, preprocessing_of
from mrcnn_jax.weights.source import LoadedWeights, WeightsSource, load_weights

log = logging.getLogger(__name__)

Shapes = Mapping[VariablePath, tuple[int, ...]]
PartialVariable = tuple[np.ndarray, np.ndarray]  # a variable, and bool: which of its outputs (last axis) have values
_HEADS = ("box_head", "mask_head", "keypoint_head")


def import_weights(
    source: WeightsSource,
    model: ModelConfig,
    *,
    format: Literal["torchvision", "detectron2", "auto"] = "auto",
    frozen_bn_eps: float | None = None,
) -> tuple[ModelConfig, Variables]:
    """Load a detection model of torchvision or Detectron2 for inference.

    Args:
      source: a file (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      model: the architecture, as in `presets`. Preprocessing, stride, epsilon and number of classes are replaced by
        those of the weights; category ids and names only if their number differs. Detectron2's files often do not state
        their preprocessing, and then that of `model` is used.
      format: the expected format; "auto" accepts each. Detectron (2018) counts as "detectron2".
      frozen_bn_eps: epsilon of frozen batch norms. Default: as in `preprocessing.select_norm_eps`. The value is logged.

    Returns the configuration and the variables (NumPy arrays, float32).

    Raises WeightsError if the file cannot be read, has another format, is not a whole detection model, or does not fit
    `model`; in the last case the message lists every missing, unexpected and wrongly shaped tensor.
    """
    weights = load_weights(source)
    if not weights.naming.is_detector:
        raise WeightsError(
            f"{weights.label} is {weights.description}, not a detection model; training can start from it (init)"
        )
    if format not in ("auto", weights.naming.project.lower()):
        raise WeightsError(f"{weights.label} is {weights.description}, not in the format {format!r}")
    if weights.inferred:
        weights = weights._replace(preprocessing=preprocessing_of(model))
    model = _set_classes(_set_preprocessing(model, weights, frozen_bn_eps), weights)
    return model, naming.import_state(weights.naming, build_model(model), weights.state, source=weights.label)


def init_from_file(
    model: ModelConfig, source: WeightsSource, key: jax.Array, label: str = ""
) -> tuple[ModelConfig, Variables]:
    """Initialize the variables of `model` from a detection model or a classifier.

    Classes and keypoints are matched by name (see `outputs`). Classes and heads that the weights lack, and everything
    but the backbone if the weights are a classifier, are initialized randomly. Heads that the model lacks are dropped.
    All of this is logged.

    Args:
      model: the configuration of the model, with the classes of the training data.
      source: a file (.pth, .pkl, .npz, .safetensors), or a state dict of arrays or torch tensors.
      key: PRNG key for the random values.
      label: the name of the weights in messages; by default the path of the file.

    Returns the configuration with the preprocessing, stride and epsilon of the weights, and the variables.

    Raises WeightsError if the file cannot be read, has an unknown format, or does not fit; see `import_weights`.
    """
    weights = load_weights(source, label)
    model = _set_preprocessing(model, weights, None)
    log.info("%s: %s", weights.label, weights.description)
    if model.backbone.norm in ("bn", "sync_bn") and caffe2_names.has_fused_norms(weights.state):
        raise WeightsError(
            f"{weights.label}: its batch norms are fused into a scale and an offset and cannot be trained with the"
            f" statistics of a batch: set model.backbone.norm=frozen_bn instead of {model.backbone.norm}"
        )
    shapes = naming.flat_shapes(build_model(model))
    if weights.naming.is_detector:
        return model, _transfer_variables(model, _source_config(model, weights), shapes, weights, key)
    wanted = {path: shape for path, shape in shapes.items() if path[1] in ("backbone", "res5")}
    variables = naming.convert_state(weights.naming, wanted, weights.state, source=weights.label)
    return model, _fill_missing(model, shapes, variables, key, weights.label)


def init_from_run(
    model: ModelConfig, run: ModelConfig, variables: Variables, key: jax.Array, label: str
) -> tuple[ModelConfig, Variables]:
    """Initialize the variables of `model` from those of another run.

    `run` is the model configuration of that run; otherwise as `init_from_file`.
    """
    model = apply_preprocessing(model, preprocessing_of(run))
    shapes = naming.flat_shapes(build_model(model))
    leaves = flax.traverse_util.flatten_dict(jax.device_get(variables))
    names = naming.FLAX.names(leaves, naming.architecture_of(shapes))
    state = {names[path]: leaf for path, leaf in leaves.items()}
    weights = LoadedWeights(label, None, "a run", naming.FLAX, state, preprocessing_of(run))
    initial = _transfer_variables(model, run, shapes, weights, key)
    old, new = run.backbone.norm, model.backbone.norm
    if old != new:
        log.info("%s: model.backbone.norm is %s, was %s: constants and statistics are kept", label, new, old)
    return model, initial


def _transfer_variables(
    model: ModelConfig, source_model: ModelConfig, shapes: Shapes, weights: LoadedWeights, key: jax.Array
) -> Variables:
    """Variables of `model` from weights of `source_model`, which may have other classes, keypoints and heads."""
    label = weights.label
    heads, source_heads = {path[1] for path in shapes}, {_head(name) for name in weights.state} - {""}
    if dropped := sorted(source_heads - heads):
        log.info("%s: not used, because the model has none: %s", label, ", ".join(dropped))
    state = {name: value for name, value in weights.state.items() if _head(name) not in dropped}
    wanted = {
        path: _source_shape(path, shape, source_model)
        for path, shape in shapes.items()
        if path[1] not in _HEADS or path[1] in source_heads
    }
    variables = naming.convert_state(weights.naming, wanted, state, source=label)
    pairs = _match_classes(model, source_model, source_heads & heads, label)
    partial: dict[VariablePath, PartialVariable] = {}
    for path in [path for path in variables if naming.module_of(path) in CLASS_LAYERS]:
        layer, value = naming.module_of(path), variables.pop(path)
        indices = source_indices(layer_outputs(model, layer), layer_outputs(source_model, layer), pairs[path[1]])
        if (indices >= 0).all():
            variables[path] = value[..., indices]
        elif (indices >= 0).any():
            partial[path] = value[..., indices], indices >= 0
    return _fill_missing(model, shapes, variables, key, label, partial)


def _match_classes(
    model: ModelConfig, source_model: ModelConfig, heads: set[str], label: str
) -> dict[str, dict[int, int]]:
    """For each of `heads`, the class or keypoint in `source_model` of each one in `model`, counted from 1; logged."""
    pairs: dict[str, dict[int, int]] = {}
    if heads & {"box_head", "mask_head"}:
        names = model.category_names, source_model.category_names
        classes, description = match_names("classes", *names, model.num_classes, source_model.num_classes)
        log.info("%s: %s", label, description)
        pairs = {"box_head": classes, "mask_head": classes}
    if "keypoint_head" in heads:
        names = model.keypoint_names, source_model.keypoint_names
        keypoints, description = match_names("keypoints", *names, model.num_keypoints, source_model.num_keypoints)
        log.info("%s: %s", label, description)
        pairs["keypoint_head"] = keypoints
    return pairs


def _source_config(model: ModelConfig, weights: LoadedWeights) -> ModelConfig:
    """`model` with the heads of the weights. Classes and keypoints are taken for COCO's if there are as many."""
    counts = {layer: _num_outputs(weights, layer) for layer in CLASS_LAYERS}
    classes = counts["box_head/logits"] - 1 if counts["box_head/logits"] else model.num_classes
    keypoints = counts["keypoint_head/deconv"]
    keypoint_names = PERSON_KEYPOINTS if keypoints == len(PERSON_KEYPOINTS) else ()
    _, names = coco_categories(classes, person=bool(keypoint_names))
    if names or keypoint_names:
        which = " and ".join(["classes"] * bool(names) + ["keypoints"] * bool(keypoint_names))
        log.info("%s: its %s are assumed to be COCO's, because of their number", weights.label, which)

    def is_agnostic(count: int, head: BoxHeadConfig | MaskHeadConfig) -> bool:
        return count == 1 and (classes > 1 or head.class_agnostic)

    box = dataclasses.replace(model.box, class_agnostic=is_agnostic(counts["box_head/deltas"] // 4, model.box))
    mask, keypoint, masks = model.mask, model.keypoint, counts["mask_head/logits"]
    if mask is not None:
        activation: Literal["sigmoid", "softmax"] = "softmax" if masks == classes + 1 else "sigmoid"
        mask = dataclasses.replace(mask, class_agnostic=is_agnostic(masks, mask), activation=activation)
    if keypoint is not None:
        keypoint = dataclasses.replace(keypoint, num_keypoints=keypoints) if keypoints else None
    return dataclasses.replace(
        model,
        num_classes=classes,
        category_names=names,
        keypoint_names=keypoint_names,
        box=box,
        mask=mask,
        keypoint=keypoint,
    )


def _num_outputs(weights: LoadedWeights, layer: str) -> int:
    """Number of outputs of a layer in the weights; 0 if they have no such layer."""
    path = ("params", *layer.split("/"), "bias")
    network = naming.architecture_of({})
    bias = weights.state.get(weights.naming.names([path], network)[path], np.zeros(0))
    return np.size(weights.naming.to_flax(path, bias, network))


def _source_shape(path: VariablePath, shape: tuple[int, ...], source_model: ModelConfig) -> tuple[int, ...]:
    """The shape of a variable in `source_model`, which differs only in classes and keypoints."""
    layer = naming.module_of(path)
    return (*shape[:-1], len(layer_outputs(source_model, layer))) if layer in CLASS_LAYERS else shape


def _head(name: str) -> str:
    """The head that a tensor belongs to, in any naming; "" if it belongs to none."""
    match = re.search(r"(?:^|[./])(box|mask|keypoint)_(?:head|predictor)[./]", name)
    return f"{match[1]}_head" if match else ""


def _set_preprocessing(model: ModelConfig, weights: LoadedWeights, frozen_bn_eps: float | None) -> ModelConfig:
    """`model` with the preprocessing, stride and epsilon of the weights; changed fields are logged."""
    path = weights.path if weights.naming is torchvision_names.DETECTION else None
    new = preprocessing.select_norm_eps(weights.preprocessing, model.backbone.norm, path, frozen_bn_eps)
    fields = zip(new._fields, map(_format_value, preprocessing_of(model)), map(_format_value, new), strict=True)
    if changes := [f"{name} is {after}, was {before}" for name, before, after in fields if before != after]:
        log.info("%s sets %s", weights.label, "; ".join(changes))
    return apply_preprocessing(model, new)


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _set_classes(model: ModelConfig, weights: LoadedWeights) -> ModelConfig:
    """`model` with the number of classes of the weights. Category ids and names are kept if there are as many.

    A single class with 17 keypoints is COCO's person.
    """
    name = weights.naming.class_scores
    if name not in weights.state:
        raise WeightsError(f"{weights.label} has no {name}: it is not a whole detection model")
    count = len(weights.state[name]) - 1
    if count == len(model.category_ids):
        return dataclasses.replace(model, num_classes=count)
    ids, names = coco_categories(count, person=model.keypoint is not None)
    model = dataclasses.replace(model, num_classes=count, category_ids=ids, category_names=names)
    if count == 1 and model.num_keypoints == len(PERSON_KEYPOINTS) and not model.keypoint_names:
        model = dataclasses.replace(model, keypoint_names=PERSON_KEYPOINTS, skeleton=PERSON_SKELETON)
    return model


def _fill_missing(
    model: ModelConfig,
    shapes: Shapes,
    variables: FlatVariables,
    key: jax.Array,
    label: str,
    partial: Mapping[VariablePath, PartialVariable] = {},
) -> Variables:
    """`variables` completed with random initial values, whose modules are logged."""
    missing = [path for path in shapes if path not in variables]
    if new := [path for path in missing if path not in partial]:
        log.info("%s: random initial values for %s", label, ", ".join(_modules(new, variables.keys() | partial.keys())))
    if missing:
        # Drawing only the missing ones saves seconds.
        random = flax.traverse_util.flatten_dict(jax.device_get(init_variables(build_model(model), key, missing)))
        mixed = {path: np.where(known, value, random[path]) for path, (value, known) in partial.items()}
        variables = {**variables, **random, **mixed}
    return flax.traverse_util.unflatten_dict(variables)


def _modules(paths: Iterable[VariablePath], others: Iterable[VariablePath]) -> list[str]:
    """The modules of `paths`; only the name of the head or backbone if none of its variables is among `others`."""
    parts = {path[1] for path in others}
    return sorted({naming.module_of(path) if path[1] in parts else path[1] for path in paths})
