"""Anybody's weights into a model: for inference as they are, or as the beginning of a training.

The file decides what goes with its weights (preprocessing, where blocks have their stride, the epsilon of frozen batch
norms, and for inference the classes); what it decides is returned as part of the configuration.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, Literal

import flax
import jax

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.rcnn import Variables, build_model, init_variables
from mrcnn_jax.weights import naming, preprocessing
from mrcnn_jax.weights.coco_categories import KEYPOINTS, SKELETON, categories
from mrcnn_jax.weights.errors import WeightsError
from mrcnn_jax.weights.naming import Flat, Path
from mrcnn_jax.weights.preprocessing import Preprocessing, follow, followed_by
from mrcnn_jax.weights.source import Source, Weights, recognise

log = logging.getLogger(__name__)


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
    found = recognise(source)
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


def initial(model: ModelConfig, source: Weights, key: jax.Array, label: str = "") -> tuple[ModelConfig, Variables]:
    """What a training of `model`, whose classes are known, starts from: weights of a whole model or of a classifier.

    The layers of a head for another number of classes, and all that a classifier lacks, get random values. Returns the
    configuration with the preprocessing, stride and epsilon of the weights, and the variables. Messages call the file
    `label`, or by its path.

    Raises WeightsError for a file that cannot be read, is of no known kind, or does not fit; see `import_weights`.
    """
    found = recognise(source, label)
    model = _follow(model, found, None)
    shapes = naming.template(build_model(model))
    wanted = shapes if found.kind.whole else {path: shape for path, shape in shapes.items() if _in_backbone(path)}
    given = naming.match(found.kind.naming, wanted, found.state, drop_head=True, source=found.label)
    log.info("%s: %s", found.label, found.kind.description)
    return model, _completed(model, shapes, given, key, found.label)


def initial_from_run(
    model: ModelConfig, run: ModelConfig, variables: Variables, key: jax.Array, label: str
) -> tuple[ModelConfig, Variables]:
    """As `initial`, from the configuration and the variables of another run of ours."""
    model = follow(model, followed_by(run))
    shapes = naming.template(build_model(model))
    state = {"/".join(path): leaf for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(variables)).items()}
    given = naming.match(naming.OURS, shapes, state, drop_head=True, source=label)
    return model, _completed(model, shapes, given, key, label)


def _follow(model: ModelConfig, found: Source, frozen_bn_eps: float | None) -> ModelConfig:
    path = found.path if found.kind.format == "torchvision" and found.kind.whole else None
    chosen = preprocessing.with_eps(found.preprocessing, model.backbone.norm, path, frozen_bn_eps)
    _report(found.label, model, chosen)
    return follow(model, chosen)


def _report(label: str, model: ModelConfig, chosen: Preprocessing) -> None:
    """Log which fields of the configuration the weights change."""
    before = followed_by(model)
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


def _completed(model: ModelConfig, shapes: Any, given: Flat, key: jax.Array, label: str) -> Variables:
    """The given variables, and random ones for the rest; says for which modules."""
    rest = [path for path in shapes if path not in given]
    if rest:
        log.info("%s: random initial values for %s", label, ", ".join(_named(rest, given)))
        fresh = init_variables(build_model(model), key, rest)  # drawing what is given as well would take seconds more
        given = {**given, **flax.traverse_util.flatten_dict(fresh)}
    return flax.traverse_util.unflatten_dict(given)


def _named(paths: Iterable[Path], others: Iterable[Path]) -> list[str]:
    """The modules of some variables; a part of the network by its own name, if nothing of it is among the others."""
    parts = {path[1] for path in others}
    return sorted({naming.module_of(path) if path[1] in parts else path[1] for path in paths})
