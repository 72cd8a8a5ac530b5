"""The tensors of a weights file, or of a state dict in memory, and what kind of network they are of."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mrcnn_jax.weights import caffe2, detectron2, efficientnet, files, preprocessing, torchvision
from mrcnn_jax.weights.errors import WeightsError
from mrcnn_jax.weights.naming import Naming, State
from mrcnn_jax.weights.preprocessing import Preprocessing

Weights = str | os.PathLike[str] | Mapping[str, Any]  # a file, or a state dict (arrays or torch tensors)

# Where files keep the state dict: Detectron2 and training scripts, Detectron (2018), Lightning and mmcv, pycls.
_WRAPPERS = ("model", "blobs", "state_dict", "model_state")
_DATA_PARALLEL = "module."  # what torch's DistributedDataParallel puts before every name


class Kind(NamedTuple):
    """A kind of weights: who writes it, and how it is read."""

    description: str
    format: Literal["torchvision", "detectron2", "efficientnet"]
    whole: bool  # a whole detection model; else the residual network of a classifier
    mark: str  # the name of a tensor by which it is known
    naming: Naming
    convert: Callable[[State], State]  # to the names of `naming`
    preprocessing: Callable[
        [State, str], Preprocessing
    ]  # of the converted state, and of the author that its file names


class Source(NamedTuple):
    """Weights of a known kind: a state dict under the names of `kind.naming`."""

    label: str  # what messages call it
    path: Path | None
    kind: Kind
    state: State
    preprocessing: Preprocessing


def _unchanged(state: State) -> State:
    return state


def _torchvision(state: State, author: str) -> Preprocessing:
    return preprocessing.TORCHVISION


def _efficientnet(state: State, author: str) -> Preprocessing:
    return preprocessing.EFFICIENTNET_LITE


def _detectron(state: State, author: str) -> Preprocessing:
    return preprocessing.of_detectron(state)


KINDS = [
    Kind(
        "a torchvision detection model",
        "torchvision",
        True,
        "backbone.body.conv1.weight",
        torchvision.DETECTION,
        torchvision.with_new_names,
        _torchvision,
    ),
    Kind(
        "a Detectron2 model",
        "detectron2",
        True,
        "proposal_generator.rpn_head.objectness_logits.weight",
        detectron2.DETECTION,
        _unchanged,
        preprocessing.of_detectron2,
    ),
    Kind(
        "a Detectron (2018) model",
        "detectron2",
        True,
        "cls_score_w",
        detectron2.DETECTION,
        caffe2.to_detectron2,
        _detectron,
    ),
    Kind(
        "a torchvision classifier",
        "torchvision",
        False,
        "layer1.0.conv1.weight",
        torchvision.CLASSIFIER,
        _unchanged,
        _torchvision,
    ),
    Kind(
        "a classifier under Detectron2's names",
        "detectron2",
        False,
        "res2.0.conv1.weight",
        detectron2.CLASSIFIER,
        _unchanged,
        preprocessing.of_detectron2,
    ),
    # Detectron2's copies of MSRA's and Caffe2's classifiers have statistics; in Detectron's they are fused.
    Kind(
        "a Caffe2 classifier of Detectron2",
        "detectron2",
        False,
        "res2_0_branch2a_bn_(rm|running_mean)",
        detectron2.CLASSIFIER,
        caffe2.to_detectron2,
        preprocessing.of_detectron2,
    ),
    Kind(
        "a Caffe2 classifier of Detectron (2018)",
        "detectron2",
        False,
        "res2_0_branch2a_w",
        detectron2.CLASSIFIER,
        caffe2.to_detectron2,
        _detectron,
    ),
    Kind(
        "an EfficientNet-Lite classifier",
        "efficientnet",
        False,
        "_blocks.0._depthwise_conv.weight",
        efficientnet.CLASSIFIER,
        _unchanged,
        _efficientnet,
    ),
]


def recognise(weights: Weights, label: str = "") -> Source:
    """Read a file (or take a state dict), find out whose it is, and bring its names up to date.

    Messages call it `label`; by default a file by its path.
    Raises WeightsError for a file that cannot be read safely, and for names that no known kind of network has.
    """
    path = None if isinstance(weights, Mapping) else Path(weights)
    label = label or ("the state dict" if path is None else os.fspath(path))
    tensors, author = _unwrap(weights if path is None else files.read(path), label)
    for kind in KINDS:
        if any(re.fullmatch(kind.mark, name) for name in tensors):
            state = kind.convert(tensors)
            return Source(label, path, kind, state, kind.preprocessing(state, author))
    known = ", ".join(kind.description for kind in KINDS)
    some = ", ".join(sorted(tensors)[:5]) or "no tensors"
    raise WeightsError(f"{label} is of no known kind: it holds {some}, ...; known are {known}")


def _unwrap(content: Any, label: str) -> tuple[dict[str, np.ndarray], str]:
    """The state dict in the content of a file, and the author that the file names."""
    author = ""
    while isinstance(content, Mapping):
        author = str(content.get("__author__", author))
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return _tensors(content), author
        content = inner[0]
    raise WeightsError(f"{label} holds a {type(content).__name__}, not a state dict")


def _tensors(content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a state dict, as NumPy arrays; what else it holds is no weight."""
    arrays = {str(name).removeprefix(_DATA_PARALLEL): _array(value) for name, value in content.items()}
    return {name: value for name, value in arrays.items() if value is not None}


def _array(value: Any) -> np.ndarray | None:
    if hasattr(value, "detach"):  # a tensor of torch, which is not imported for this
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value) if hasattr(value, "__array__") else None
